"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.claims import ZERO, Claim, differences, verdict
from experiments.finished import Finished
from experiments.plots import by_teacher
from experiments.statistics import Estimate, estimate, higher_is_better, paired_difference
from experiments.suites import Run, Suite

NOT_RUN = "not run"

_MAIN_LOSSES = {"uld": "ULD", "gold": "GOLD", "hkl": "H-KL", "pkl": "P-KL", "bp": "byte-prefix KL"}


def suite_table(suite: Suite, finished: Finished) -> str:
    """A row for every run: its metrics, and its primary metric less that of its baseline, paired by seed.

    A row is bold where the 95% interval of that difference lies wholly on the better side.
    """
    primary, *others = suite.metrics
    baselines = sorted({suite.runs[run.baseline].title for run in suite.runs.values() if run.baseline})
    named = baselines[0] if len(baselines) == 1 else "its baseline"
    compared = [f"difference to {named}"] if baselines else []
    columns = [*suite.metrics.values(), *compared, "seeds"]
    lines, teacher = [table_row(["teacher", "run", *columns]), table_row(["---"] * (len(columns) + 2))], None
    for run in by_teacher(suite):
        shown = "" if run.teacher == teacher else run.teacher or "none"
        teacher = run.teacher
        values = finished.metric(suite.name, run.name, primary)
        found = estimate([*values.values()]) if values else None
        rest = [finished.metric(suite.name, run.name, tag) for tag in others]
        difference = None
        if run.baseline not in ("", run.name):
            difference = paired_difference(values, finished.metric(suite.name, run.baseline, primary))
        cells = [
            run.title,
            format_estimate(found),
            *(format_number(estimate([*of_seeds.values()]).mean) if of_seeds else "" for of_seeds in rest),
            *(["" if difference is None else format_estimate(difference, signed=True)] if baselines else []),
        ]
        if difference is not None and difference.side == (1 if higher_is_better(primary) else -1):
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append(table_row([shown, *cells, _seeds(run, len(values))]))
    return "\n".join(lines)


def claims_table(claims: Sequence[Claim], finished: Finished) -> str:
    """Claim, source, verdict, and the difference of each comparison."""
    lines = [table_row(["claim", "source", "verdict", "difference (95% interval)"]), table_row(["---"] * 4)]
    for claim in claims:
        found = differences(claim, finished)
        compared = zip(claim.comparisons, found, strict=True)
        numbers = "<br>".join(f"{_minus(*runs)}: {_number(difference)}" for runs, difference in compared)
        lines.append(table_row([claim.claim, claim.source, f"**{verdict(claim, finished)}**", numbers]))
    return "\n".join(lines)


def main_table(suites: Mapping[str, Suite], finished: Finished) -> str:
    """The README's: the addition suite's primary metric by loss, under the teachers D and P.

    Raises:
        ValueError: If the suites lack one of its runs.
    """
    names = ["ce", *(f"{side}_{loss}" for side in "dp" for loss in _MAIN_LOSSES)]
    runs = suites["addition"].runs if "addition" in suites else {}
    missing = [name for name in names if name not in runs]
    if missing:
        raise ValueError(f"the README's table needs the runs addition/{missing}, which no suite has; pass readme=None")
    tag, title = next(iter(suites["addition"].metrics.items()))
    values = {name: [*finished.metric("addition", name, tag).values()] for name in names}
    cells = {name: format_estimate(estimate(of_seeds) if of_seeds else None) for name, of_seeds in values.items()}
    seeds = sorted({len(of_seeds) for of_seeds in values.values() if of_seeds})
    header = [f"{title}, mean (95% interval)", "teacher splits digits", "teacher packs numbers"]
    lines = [
        table_row(header),
        table_row(["---"] * 3),
        table_row([f"{runs['ce'].title}, no teacher", cells["ce"], cells["ce"]]),
    ]
    lines += [table_row([label, cells[f"d_{loss}"], cells[f"p_{loss}"]]) for loss, label in _MAIN_LOSSES.items()]
    counts = " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]]))) if seeds else "0"
    return "\n".join([*lines, "", f"Number of seeds: {counts}."])


def format_number(value: float, *, signed: bool = False) -> str:
    """Three decimals; what is 0 when rounded has no sign."""
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.lstrip("+-") if not float(text) else text


def format_estimate(found: Estimate | None, *, signed: bool = False) -> str:
    """Mean (interval); the mean alone of a single value."""
    if found is None:
        return NOT_RUN
    if found.interval is None:
        return format_number(found.mean, signed=signed)
    low, high = (format_number(end, signed=signed) for end in found.interval)
    return f"{format_number(found.mean, signed=signed)} ({low} to {high})"


def _number(difference: Estimate | None) -> str:
    return NOT_RUN if difference is None else f"{format_estimate(difference, signed=True)}, n = {difference.n}"


def _minus(better: str, worse: str) -> str:
    if worse == ZERO:
        return f"`{better}`"
    (suite, _), (other, name) = better.split("/"), worse.split("/")
    return f"`{better}` - `{name if other == suite else worse}`"


def _seeds(run: Run, finished: int) -> str:
    return f"{finished} of {len(run.seeds)}" if finished < len(run.seeds) else str(finished)


def table_row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
