"""What the byte-prefix KL's lookahead costs a real teacher: ``python -m benchmarks.lookahead``.

The quickstart's student; text with numerals. SmolLM2-135M, which splits numerals, reads a batch, and its head gives the
log-probabilities of all rows; with lookahead it also reads tokens of its own, and the plan is extended by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import cast

import torch

from benchmarks.measure import Figure, ratios, run
from benchmarks.pair import batch_of_text
from xtoken_pl import BytePrefixKL, MultiTeacherDistillModule, Student, Teacher
from xtoken_pl.batch import TeacherBatch
from xtoken_pl.cli.prepare import prepare
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
    view = batch_of_text(module, _WINDOWS, _LENGTH).teachers["t"]
    loss, teacher = cast(BytePrefixKL, module.losses["t"]), module.loaded_teachers["t"]
    boundary = _read_ahead(loss, teacher, view).boundary
    divided, total = boundary.count("starts"), len(boundary.row)
    what = f"lookahead of {_SHARE:g}"
    yield Figure(f"{what}: boundaries divided", 100 * divided / total, "%", note=f"{divided} of {total}")
    times = ratios(partial(_read, teacher, view), {what: partial(_read_ahead, loss, teacher, view)}, _ROUNDS)
    label = f"{what}: teacher's pass, head and lookahead against pass and head"
    yield Figure(label, times.ratio(what), "x", note=times.note(what))


def _read(teacher: FrozenModel, view: TeacherBatch) -> None:
    """The teacher reads the text."""
    rows = teacher.rows(view)
    rows.head.log_probs(rows.hidden, 1.0)


def _read_ahead(loss: BytePrefixKL, teacher: FrozenModel, view: TeacherBatch) -> PrefixPlan:
    """The teacher reads the text, and what it continues it with."""
    branches = teacher.branches(view.tokens, 1.0)
    branches.log_probs(torch.arange(len(branches.labels)))
    return cast(PrefixPlan, loss.look_ahead(cast(PrefixPlan, view.plan), branches))


if __name__ == "__main__":
    run(figures)
