"""The mass that a loss compares with no token, and the agreement of both sides' most probable tokens."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from fake_vocabularies import V_S, V_T, bound, dense, random_projection
from span_rows import LABELS, NUM_STUDENT_ROWS, NUM_TEACHER_ROWS, SPANS, block_of, random_rows
from torch import Tensor

from xtoken_pl import GOLD, ULD, HybridKL, MatchedRowLoss, Projection, ProjectionKL
from xtoken_pl.losses.partitioned import PartitionedLoss


def test_mass_on_zero_rows_is_reported_as_unmapped() -> None:
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    scores = bound(ProjectionKL(), random_projection())(block_of(student, teacher, LABELS, SPANS))
    firsts = torch.tensor([start for start, *_ in SPANS])
    expected = student.softmax(-1)[firsts, -2:].sum(-1)  # the last two rows of the projection are zero
    torch.testing.assert_close(scores.unmapped_mass, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [GOLD, HybridKL])
def test_mass_outside_the_common_set_is_reported_as_unmapped(kind: type[PartitionedLoss]) -> None:
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    loss = cast(PartitionedLoss, bound(kind(), random_projection()))
    firsts = torch.tensor([start for start, *_ in SPANS])
    expected = 1 - student.softmax(-1)[firsts][:, loss.student_common].sum(-1)
    assert (expected > 1e-3).any()
    unmapped = loss(block_of(student, teacher, LABELS, SPANS)).unmapped_mass
    torch.testing.assert_close(unmapped, expected, rtol=0, atol=1e-12)


def test_uld_compares_no_token_so_that_everything_is_unmapped() -> None:
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    assert bound(ULD())(block_of(student, teacher, LABELS, SPANS)).unmapped_mass.tolist() == [1.0] * len(SPANS)


def test_agreement_counts_the_same_top_token_after_projection() -> None:
    projection = random_projection()
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    agreement = bound(ProjectionKL(), projection).eval()(block_of(student, teacher, LABELS, SPANS)).agreement
    expected = [
        float((student[a].softmax(-1) @ dense(projection)).argmax() == teacher[c].argmax()) for a, _, c, _ in SPANS
    ]
    assert agreement is not None
    assert agreement.tolist() == expected


@pytest.mark.parametrize("loss", [GOLD(), HybridKL(), ULD()], ids=lambda loss: type(loss).__name__)
def test_agreement_counts_top_tokens_that_are_a_pair(loss: MatchedRowLoss) -> None:
    student = torch.zeros(3, V_S, dtype=torch.float64)
    teacher = torch.zeros(3, V_T, dtype=torch.float64)
    student[0, 0], teacher[0, 7] = 5.0, 5.0  # a and a
    student[1, 0], teacher[1, 5] = 5.0, 5.0  # a and b
    student[2, 12], teacher[2, 0] = 5.0, 5.0  # m, which has no counterpart, and z
    labels = torch.zeros(3, dtype=torch.long)
    exact = Projection(
        torch.tensor([[7], *[[0]] * 12]),
        torch.tensor([[1.0], *[[0.0]] * 12]),
        torch.arange(V_S) == 0,
        V_T,
        "s",
        "t",
    )
    block = block_of(student, teacher, (labels, labels), [(i, i + 1, i, i + 1) for i in range(3)])
    assert cast(Tensor, bound(loss, exact).eval()(block).agreement).tolist() == [1.0, 0.0, 0.0]
