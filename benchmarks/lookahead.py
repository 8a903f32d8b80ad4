"""What the byte-prefix KL's lookahead costs a real teacher: ``python -m benchmarks.lookahead``.

The quickstart's student; text with numerals. SmolLM2-135M, which splits numerals, reads a batch, and its head gives the
log-probabilities of all rows; with lookahead it also reads tokens of its own, and the plan is extended by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch

from benchmarks.measure import Figure, ratios, run
from benchmarks.pair import TEXT
from xtoken_pl import BytePrefixKL, MultiTeacherDistillModule, Student, Teacher
from xtoken_pl.batch import TeacherBatch
from xtoken_pl.cli.prepare import prepare
from xtoken_pl.data import Windower, collate
from xtoken_pl.prefix_map import PrefixPlan
from xtoken_pl.teachers.local import FrozenModel

_SHARE, _WINDOWS, _LENGTH, _ROUNDS = 0.5, 4, 256, 7


def figures() -> Iterator[Figure]:
    """Boundaries that are divided, and the time that it takes, as shares of all and of the teacher's pass and head."""
    prepare()
    module = MultiTeacherDistillModule(
        Student(model="quickstart/student", weights="random"),
        {"t": Teacher(model="quickstart/teacher-smollm2", loss=BytePrefixKL(lookahead=_SHARE))},
    )
    module.setup("fit")
    module.configure_model()
    columns = Windower(*module.vocabularies(), _LENGTH)([TEXT])
    windows = [{key: column[index] for key, column in columns.items()} for index in range(_WINDOWS)]
    view = collate(windows, ["t"], module.planners()).teachers["t"]
    ahead = _Ahead(cast(BytePrefixKL, module.losses["t"]), module.loaded_teachers["t"], view)
    boundary = ahead.read().boundary
    divided, total = boundary.count("starts"), len(boundary.row)
    what = f"lookahead of {_SHARE:g}"
    yield Figure(f"{what}: boundaries divided", 100 * divided / total, "%", note=f"{divided} of {total}")
    times = ratios(ahead.score, {what: ahead.read}, _ROUNDS)
    yield Figure(
        f"{what}: teacher's pass, head and lookahead against pass and head",
        times.ratio(what),
        "x",
        note=times.note(what),
    )


class _Ahead:
    """A teacher's work for one batch, with lookahead and without."""

    def __init__(self, loss: BytePrefixKL, teacher: FrozenModel, view: TeacherBatch) -> None:
        self._loss, self._teacher, self._view = loss, teacher, view

    def score(self) -> None:
        """Reads the text."""
        rows = self._teacher.rows(self._view)
        rows.head.log_probs(rows.hidden, 1.0)

    def read(self) -> PrefixPlan:
        """Reads the text and what the teacher continues it with."""
        branches = self._teacher.branches(self._view.tokens, 1.0)
        branches.log_probs(torch.arange(len(branches.labels)))
        return cast(PrefixPlan, self._loss.look_ahead(cast(PrefixPlan, self._view.plan), branches))


if __name__ == "__main__":
    run(figures)
