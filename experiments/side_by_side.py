"""The losses side by side: a row for every loss, a column for every suite and teacher, and who is first in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import rankdata

from experiments.finished import Finished
from experiments.statistics import Estimate, estimate, higher_is_better, paired_difference
from experiments.suites import Run, Suite
from experiments.tables import NOT_RUN, format_estimate, table_row

#: The suites, and what their columns are called.
COLUMNS = {
    "losses": "sums",
    "losses_on_policy": "sums, on-policy",
    "losses_letters": "letters",
    "losses_real": "real text",
    "losses_pretrained": "real text",
}
#: The loss of ours, whose place is told in words, and its variant.
FLAGSHIP, VARIANT = "byte-prefix KL", "byte-prefix KL, weighed inside"


@dataclass(frozen=True)
class Column:
    """All losses under one teacher of a suite.

    Attributes:
        values: Primary metric by title of the loss, and by seed; complete runs alone are ranked.
        same_as: Title of a loss that was not run -> title of the run that is the same.
        incomplete: Titles of runs without a value for each of their seeds.
    """

    suite: str
    teacher: str
    metric: str
    values: dict[str, dict[int, float]]
    same_as: dict[str, str]
    incomplete: frozenset[str]

    @property
    def title(self) -> str:
        """The suite and the teacher."""
        return f"{COLUMNS[self.suite]}, {self.teacher}"

    def of(self, loss: str) -> dict[int, float]:
        """A loss's values by seed; empty where it was not run."""
        return self.values.get(self.same_as.get(loss, loss), {})

    @cached_property
    def ranks(self) -> dict[str, float]:
        """Rank of each complete loss by its mean, 1 for the best; losses that are the same share theirs."""
        complete = [loss for loss in (*self.values, *self.same_as) if self.is_complete(loss)]
        means = np.array([np.mean([*self.of(loss).values()]) for loss in complete])
        return dict(zip(complete, rankdata(-means if higher_is_better(self.metric) else means).tolist(), strict=True))

    def is_complete(self, loss: str) -> bool:
        """Whether the loss has a value for each seed."""
        return bool(self.of(loss)) and self.same_as.get(loss, loss) not in self.incomplete

    @property
    def first(self) -> str | None:
        """The run of the best mean, or None where none is complete."""
        return min((loss for loss in self.ranks if loss in self.values), key=self.ranks.__getitem__, default=None)

    def behind(self, loss: str) -> Estimate | None:
        """The loss's metric less that of the first one, paired by seed, or None where it is the first."""
        first = self.first
        if first is None or self.same_as.get(loss, loss) == first:
            return None
        return paired_difference(self.of(loss), self.values[first])

    def is_level(self, loss: str) -> bool:
        """Whether a loss is the first, or the interval of its difference to the first holds 0."""
        behind = self.behind(loss)
        return self.is_complete(loss) and (behind is None or (behind.half is not None and behind.side == 0))


def columns(suites: Mapping[str, Suite], finished: Finished) -> list[Column]:
    """The columns, suite by suite, teachers in the order of their first runs."""
    return [
        _column(suites[name], teacher, finished)
        for name in COLUMNS
        if name in suites
        for teacher in dict.fromkeys(run.teacher for run in _compared(suites[name]) if run.teacher)
    ]


def losses(all_columns: list[Column]) -> list[str]:
    """The titles of all losses, in the order of the column that has most runs."""
    fullest = sorted(all_columns, key=lambda column: len(column.values), reverse=True)
    return list(dict.fromkeys(loss for column in fullest for loss in (*column.values, *column.same_as)))


def side_by_side_table(all_columns: list[Column]) -> str:
    """Mean, interval and rank of every loss in every column, and the mean of its ranks over all columns.

    A cell is bold where the loss is the first of its column, or the interval of its difference to the first holds 0.
    """
    header = ["loss", *(column.title for column in all_columns), "mean rank"]
    lines = [table_row(header), table_row(["---"] * len(header))]
    for loss in losses(all_columns):
        ranks = [column.ranks.get(loss) for column in all_columns]
        known = [rank for rank in ranks if rank is not None]
        mean = f"{np.mean(known):.1f}" if len(known) == len(all_columns) else ""
        lines.append(table_row([loss, *(_cell(column, loss) for column in all_columns), mean]))
    return "\n".join(lines)


def place_text(all_columns: list[Column], loss: str = FLAGSHIP) -> str:
    """In which columns a loss is first or level with the first, and how far it is behind in the others."""
    known = [column for column in all_columns if column.is_complete(loss)]
    if not known:
        return NOT_RUN
    behind = [column for column in known if not column.is_level(loss)]
    number = f"all {len(known)}" if not behind else f"{len(known) - len(behind)} of {len(known)}"
    text = f"first, or level with the first, in {number} columns"
    if behind:
        text += "; it is behind in " + ", ".join(
            f"*{column.title}* ({column.first} is first, {format_estimate(column.behind(loss), signed=True)})"
            for column in behind
        )
    if missing := [column.title for column in all_columns if column not in known]:
        text += f"; {NOT_RUN}: {', '.join(missing)}"
    return text


def _cell(column: Column, loss: str) -> str:
    if loss not in column.values and loss not in column.same_as:
        return ""
    values = column.of(loss)
    text = format_estimate(estimate([*values.values()]) if values else None)
    if column.is_complete(loss):
        text += f", {column.ranks[loss]:g}"
    elif values:
        text += f", {len(values)} {'seed' if len(values) == 1 else 'seeds'}"
    if loss in column.same_as:
        text += f", as {column.same_as[loss]}"
    return f"**{text}**" if column.is_level(loss) else text


def _compared(suite: Suite) -> list[Run]:
    """The runs that are compared: all but those that others learn from."""
    return [run for run in suite.runs.values() if run.baseline]


def _column(suite: Suite, teacher: str, finished: Finished) -> Column:
    metric = next(iter(suite.metrics))
    runs = [run for run in _compared(suite) if run.teacher == teacher]
    baselines = [suite.runs[name] for name in dict.fromkeys(run.baseline for run in runs)]
    shown = {run.name: run for run in (*baselines, *runs)}.values()
    values = {run.title: finished.metric(suite.name, run.name, metric) for run in shown}
    return Column(
        suite.name,
        teacher,
        metric,
        values,
        {title: run.title for run in runs for title in run.also},
        frozenset(run.title for run in shown if not {*run.seeds} <= values[run.title].keys()),
    )
