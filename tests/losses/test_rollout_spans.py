"""Every loss on spans as a student's own text has them: behind a prompt, up to the last row, of a single token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from loss_cases import CASES, LossCase, LossRows, TextRows
from loss_tester import close, evaluated, scored, weights
from prefix_pairs import Pair
from span_rows import Spans, block_of, random_labels, random_rows

from xtoken_pl.batch import SpanBatch

#: Rows of the student and of the teacher, and spans; the first rows predict tokens of the prompt.
LETTERS: dict[str, tuple[int, int, Spans]] = {
    "up to the end tokens": (9, 7, [(3, 4, 2, 4), (4, 7, 4, 5), (7, 8, 5, 6), (8, 9, 6, 7)]),
    "cut off inside a span": (8, 7, [(2, 3, 1, 2), (3, 4, 2, 4), (4, 6, 4, 6)]),
    "a single token": (4, 3, [(3, 4, 2, 3)]),
    "only the end token": (1, 1, [(0, 1, 0, 1)]),
}
#: Text, and the student tokens that are not learned, counted from the end if they are negative.
TEXTS: dict[str, tuple[str, Sequence[int]]] = {
    "up to the end tokens": (" 12 + 34 = 46; unhappy", range(4)),
    "cut off inside a span": (" 12 + 34 = 46; unhappy", [0, 1, 2, 3, -1, -2]),
    "a single token": ("a", [-1]),
    "only the end token": ("a", [-2]),
}


def rows_of(case: LossCase, name: str) -> LossRows:
    if isinstance(case.rows_of, TextRows):
        text, masked = TEXTS[name]
        sides = case.rows_of.student(), case.rows_of.teacher()
        places = range(len(Pair.of(*sides, text, loss=case.loss).window["student_ids"]))
        pair = Pair.of(*sides, text, loss=case.loss, masked=[places[place] for place in masked])
        labels = pair.batch.student.labels, pair.batch.teachers["t"].tokens.labels
        return LossRows(*pair.rows(), labels, pair.spans, pair.plan, pair)
    num_student, num_teacher, spans = LETTERS[name]
    sizes = [case.rows().student.shape[1], case.rows().teacher.shape[1]]
    student, teacher = random_rows(num_student, sizes[0], 5), random_rows(num_teacher, sizes[1], 6)
    labels = random_labels(num_student, sizes[0], 7), random_labels(num_teacher, sizes[1], 8)
    s, t = (block := block_of(student, teacher, labels, spans)).student, block.teacher
    return LossRows(student, teacher, labels, SpanBatch(s.first, s.length, t.first, t.length, s.span, t.span))


def has_such_spans(case: LossCase, name: str) -> bool:
    """Without bos on both sides nothing predicts the first token of a text, which is in no span then."""
    if name != "a single token" or not isinstance(case.rows_of, TextRows):
        return True
    return all(make().bos_token is not None for make in (case.rows_of.student, case.rows_of.teacher))


@pytest.mark.parametrize(
    ("case", "name"), [(case, name) for case in CASES for name in LETTERS if has_such_spans(case, name)], ids=str
)
def test_equals_the_slow_reference_in_any_blocks(case: LossCase, name: str) -> None:
    rows = rows_of(case, name)
    assert len(rows.spans) == 1 if "single" in name or "only" in name else len(rows.spans) > 1
    leaf = rows.student.clone().requires_grad_()
    slow = case.slow(rows, leaf)
    losses, gradient = scored(case, rows, rows.student)
    close(losses, slow.detach())
    assert losses.abs().max() > 1e-3
    if slow.requires_grad:
        close(gradient, torch.autograd.grad((weights(rows) * slow).sum(), leaf)[0])
    assert torch.autograd.gradcheck(
        lambda x: case.loss(rows.block(x)).loss, rows.student.clone().requires_grad_(), fast_mode=True
    )
    in_blocks, of_blocks = evaluated(case, rows, memory=1.0)
    close(in_blocks, losses)
    close(of_blocks, gradient)
