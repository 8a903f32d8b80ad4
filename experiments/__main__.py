"""``python -m experiments run`` trains, ``report`` writes up, ``check`` is for the quick suite."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from jsonargparse import auto_cli

from experiments.claims import QUICK_CLAIMS, broken_claims, load_claims
from experiments.finished import RESULTS, Finished, read_finished
from experiments.jobs import make_jobs
from experiments.report import README, TARGET, write_report
from experiments.runner import only_process, run_jobs
from experiments.suites import EVIDENCE, Suite, load_suites
from experiments.tables import suite_table


def run(suites: list[str] | None = None, folder: str = "runs/evidence", num_processes: int = 2) -> None:
    """Train what the results do not hold yet; a run that was cut off is done again.

    Args:
        suites: Names of files in experiments/suites, in the order to run them; all but quick and words by default.
        folder: Where models, lines, logs and results.jsonl are kept.
        num_processes: Runs at a time, each on one core.
    """
    root = Path(folder)
    with only_process(root):
        run_jobs(make_jobs(load_suites(suites or EVIDENCE), root, load_suites()), root, num_processes)


def report(folder: str = "runs/evidence", target: str = str(TARGET), readme: str | None = str(README)) -> None:
    """Write what the runs show: tables, figures, a verdict on every claim.

    Args:
        folder: Of ``run``.
        target: The report; figures go beside it.
        readme: Whose main table is replaced; null for none.
    """
    suites = load_suites(EVIDENCE)
    write_report(_finished(suites, folder), Path(target), None if readme is None else Path(readme), suites)
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


def _finished(suites: Mapping[str, Suite], folder: str) -> Finished:
    """The results that are of the suites as they stand."""
    if not (Path(folder) / RESULTS).is_file():
        raise ValueError(f"folder must be that of `python -m experiments run`, there is no {RESULTS} in {folder!r}")
    return read_finished(Path(folder), {key: job.settings for key, job in make_jobs(suites, Path(folder)).items()})


if __name__ == "__main__":
    auto_cli({"run": run, "report": report, "check": check}, as_positional=False)
