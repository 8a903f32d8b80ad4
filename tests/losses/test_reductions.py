"""Losses where two of them must agree, or a value is known in closed form."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from fake_vocabularies import STUDENT, V_S, V_T, bound, identity_projection, random_projection, slow_pairs
from loss_cases import CASES, DIVERGENCES, MERGES, LossCase, slow_partitioned
from span_rows import LABELS, NUM_STUDENT_ROWS, NUM_TEACHER_ROWS, SPANS, block_of, random_labels, random_rows

from xtoken_pl import GOLD, ULD, HybridKL, MatchedRowLoss, ProjectionKL, TokenKL
from xtoken_pl.losses import Divergence, Merge
from xtoken_pl.losses.partitioned import PartitionedLoss


@pytest.mark.parametrize("case", [case for case in CASES if issubclass(case.kind, MatchedRowLoss)], ids=str)
def test_loss_is_zero_where_both_sides_agree(case: LossCase) -> None:
    """The same rows, and everything paired with itself: of spans of one, two and three tokens."""
    same = bound(cast(MatchedRowLoss, case.kind(**case.options)), identity_projection(), STUDENT, STUDENT)
    rows, labels = random_rows(6, V_S, 1), random_labels(6, V_S, 2)
    spans = [(0, 1, 0, 1), (1, 4, 1, 4), (4, 6, 4, 6)]
    if isinstance(same, ProjectionKL) and same.merge == "mean":
        spans = spans[:1]  # probabilities are averaged on one side, their logarithms on the other
    result = same(block_of(rows, rows, (labels, labels), spans))
    torch.testing.assert_close(result.loss, torch.zeros(len(spans), dtype=torch.float64), rtol=0, atol=1e-14)
    if not isinstance(same, ULD):
        assert (result.unmapped_mass < 1e-12).all()


@pytest.mark.parametrize("merge", MERGES)
def test_identity_projection_reduces_to_kl(merge: Merge) -> None:
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_S, 2)
    block = block_of(
        student, teacher, LABELS, SPANS if merge == "chain_rule" else [(i, i + 1, i, i + 1) for i in range(9)]
    )
    projected = bound(ProjectionKL(merge=merge), identity_projection())(block)
    torch.testing.assert_close(projected.loss, bound(TokenKL(merge=merge))(block).loss, rtol=0, atol=1e-12)
    assert (projected.unmapped_mass < 1e-12).all()


def test_chain_rule_compares_the_probability_of_the_whole_span() -> None:
    # One student token that the teacher writes in two: p_S = (0.7, 0.3), p_T = (0.4, 0.6), continuation 0.25.
    student = torch.tensor([[0.7, 0.3]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.4, 0.6], [0.75, 0.25]], dtype=torch.float64).log()
    block = block_of(student, teacher, (torch.tensor([0]), torch.tensor([0, 1])), [(0, 1, 0, 2)])
    loss = bound(ProjectionKL(), identity_projection(2))(block).loss
    expected = 0.1 * math.log(0.1 / 0.7) + 0.15 * math.log(0.15 / 0.3) - 0.25 + 1.0
    assert loss.tolist() == pytest.approx([expected], abs=1e-14)


@pytest.mark.parametrize("merge", MERGES)
def test_gold_with_everything_common_reduces_to_kl(merge: Merge) -> None:
    rows, labels = (random_rows(9, V_S, seed) for seed in (1, 2)), random_labels(9, V_S, 3)
    block = block_of(*rows, (labels, labels), [(0, 1, 0, 1), (1, 4, 1, 3), (4, 6, 3, 6)])
    gold = bound(GOLD(merge=merge), teacher=STUDENT)(block).loss
    torch.testing.assert_close(gold, bound(TokenKL(merge=merge))(block).loss, rtol=0, atol=1e-12)


def test_jensen_shannon_is_symmetric() -> None:
    rows, labels = [random_rows(9, V_S, seed) for seed in (1, 2)], random_labels(9, V_S, 3)
    spans = [(0, 1, 0, 1), (1, 4, 1, 3), (4, 6, 3, 6)]
    loss = bound(TokenKL(divergence="jensen_shannon"))
    one = loss(block_of(rows[0], rows[1], (labels, labels), spans)).loss
    other = loss(block_of(rows[1], rows[0], (labels, labels), [(c, d, a, b) for a, b, c, d in spans])).loss
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kl_weight", "uld_weight"), [(0.3, 1.7), (2.0, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("kind", [GOLD, HybridKL])
def test_weights_of_both_terms_agree_with_the_slow_reference(
    kind: type[PartitionedLoss], kl_weight: float, uld_weight: float
) -> None:
    case = LossCase(kind, slow_partitioned, {"kl_weight": kl_weight, "uld_weight": uld_weight})
    rows = case.rows()
    torch.testing.assert_close(case.loss(rows.block()).loss, case.slow(rows, rows.student), rtol=0, atol=1e-10)


def test_enlarged_pairs_are_not_those_of_equal_text() -> None:
    """Or H-KL and GOLD would be the same loss here, and no test could tell them apart."""
    strict, enlarged = slow_pairs(None), slow_pairs(random_projection())
    assert set(strict) < set(enlarged)
    assert len(enlarged) < V_T


@pytest.mark.parametrize("factor", [1.0, 65536.0], ids=["plain", "under a gradient scaler"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_ids_that_do_not_exist_take_no_part(divergence: Divergence, dtype: torch.dtype, factor: float) -> None:
    student, teacher = random_rows(5, V_S, 1, dtype).requires_grad_(), random_rows(5, V_S, 2, dtype)
    labels = random_labels(5, V_S - 1, 3)
    spans = [(0, 1, 0, 1), (1, 3, 1, 2), (3, 5, 2, 5)]
    hole = torch.arange(V_S) == V_S - 1
    with_hole = block_of(
        student.masked_fill(hole, -torch.inf), teacher.masked_fill(hole, -torch.inf), (labels,) * 2, spans
    )
    without = block_of(student[:, :-1], teacher[:, :-1], (labels,) * 2, spans)
    loss, plain = (bound(TokenKL(divergence=divergence))(block).loss for block in (with_hole, without))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(loss, plain, rtol=tolerance, atol=tolerance)
    (gradient,) = torch.autograd.grad(factor * loss.sum(), student)
    (expected,) = torch.autograd.grad(factor * plain.sum(), student)
    torch.testing.assert_close(gradient, expected, rtol=10 * tolerance, atol=factor * tolerance)
    assert (gradient[:, -1] == 0).all()


def test_teacher_tokens_that_no_student_token_reaches_do_not_make_the_loss_infinite() -> None:
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    teacher[:, -1] = 50.0  # all of the teacher's mass is on a token that W does not reach
    loss = bound(ProjectionKL(), random_projection())(block_of(student, teacher, LABELS, SPANS)).loss
    assert torch.isfinite(loss).all()
