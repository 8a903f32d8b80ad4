"""``python -m experiments run`` trains, ``report`` writes up, ``check`` is for the quick suite."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from jsonargparse import auto_cli

from experiments.claims import QUICK_CLAIMS, broken_claims, load_claims
from experiments.finished import RESULTS, Finished, FinishedRun, read_finished, read_lines
from experiments.jobs import make_jobs
from experiments.report import README, TARGET, write_report
from experiments.runner import only_process, run_jobs
from experiments.suites import EVIDENCE, RECORDED, Suite, load_suites
from experiments.tables import suite_table


def run(
    suites: list[str] | None = None,
    folder: str = "runs/evidence",
    num_processes: int = 2,
    *,
    all_suites: bool = False,
) -> None:
    """Train what the results do not hold yet; a run that was cut off is done again.

    Args:
        suites: Names of files in experiments/suites, in the order to run them; those that compare all losses by
            default.
        folder: Where models, lines, logs and results.jsonl are kept.
        num_processes: Runs at a time, each on one core.
        all_suites: Then also run the suites of which a report shows recorded results otherwise.
    """
    root = Path(folder)
    with only_process(root):
        names = [*(suites or EVIDENCE), *(RECORDED if all_suites else ())]
        run_jobs(make_jobs(load_suites(names), root, load_suites()), root, num_processes)


def report(folder: str = "runs/evidence", target: str = str(TARGET), readme: str | None = str(README)) -> None:
    """Write what the runs show: tables, figures, a verdict on every claim.

    Suites that `run` leaves out by default have the results that lie beside the shipped report, where the folder holds
    none.

    Args:
        folder: Of ``run``.
        target: The report; figures go beside it.
        readme: Whose main table is replaced; null for none.
    """
    suites = load_suites([*EVIDENCE, *RECORDED])
    recorded = [done for done in read_lines(TARGET.parent) if done.suite in RECORDED]
    write_report(_finished(suites, folder, recorded), Path(target), None if readme is None else Path(readme), suites)
    print(f"written to {target}")


def check(folder: str = "runs/evidence-quick") -> None:
    """Print what the suite quick shows, and fail where a claim that must hold at any size does not.

    Args:
        folder: Of ``run --suites [quick]``.

    Raises:
        SystemExit: If a claim of experiments/quick_claims.yaml does not hold for every seed.
    """
    suites = load_suites(["quick"])
    finished = _finished(suites, folder)
    print(suite_table(suites["quick"], finished))
    if broken := broken_claims(load_claims(QUICK_CLAIMS), finished):
        sys.exit("must hold for every seed, and does not:\n" + "\n".join(broken))


def _finished(suites: Mapping[str, Suite], folder: str, recorded: Iterable[FinishedRun] = ()) -> Finished:
    """The results that are of the suites as they stand; recorded ones where the folder has none."""
    if not (Path(folder) / RESULTS).is_file():
        raise ValueError(f"folder must be that of `python -m experiments run`, there is no {RESULTS} in {folder!r}")
    wanted = {key: job.settings for key, job in make_jobs(suites, Path(folder)).items()}
    return read_finished(Path(folder), wanted, recorded)


if __name__ == "__main__":
    auto_cli({"run": run, "report": report, "check": check}, as_positional=False)
