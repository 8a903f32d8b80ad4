"""Losses as functions of rows: against slow references, in gradient, at the edges."""

from __future__ import annotations

import math
from typing import cast

import pytest
import reference
import torch
from torch import Tensor

from xtoken_pl import MatchedRowLoss, Projection, ProjectionKL, TokenKL
from xtoken_pl.losses import Merge, SpanBlock
from xtoken_pl.losses.base import SideRows
from xtoken_pl.tokenization import CanonicalVocabulary

# One-to-one, one-to-many, many-to-one and many-to-many spans, with gaps between them.
SPANS = [(0, 1, 0, 1), (1, 2, 1, 4), (3, 6, 4, 5), (6, 8, 5, 8), (9, 10, 8, 9)]
NUM_STUDENT_ROWS, NUM_TEACHER_ROWS = 10, 9
V_S, V_T = 13, 11
MERGES: list[Merge] = ["chain_rule", "mean"]


def random_projection(seed: int = 0) -> Projection:
    """Rows of one to four tokens, two zero rows, and two teacher tokens that no row reaches."""
    generator = torch.Generator().manual_seed(seed)
    indices, weights = torch.zeros(V_S, 4, dtype=torch.long), torch.zeros(V_S, 4)
    for row in range(V_S - 2):
        count = row % 4 + 1
        indices[row, :count] = torch.randperm(V_T - 2, generator=generator)[:count]
        weights[row, :count] = torch.rand(count, generator=generator) + 0.1
        weights[row] /= weights[row].sum()
    # Weights in single precision sum to 1 only roughly; powers of two do so exactly.
    weights = (weights * 1024).round() / 1024
    weights[:, 0] += (weights.sum(1) > 0) * (1 - weights.sum(1))
    return Projection(indices, weights, weights[:, 0] == 1, V_T, "s", "t")


def dense(projection: Projection) -> Tensor:
    matrix = torch.zeros(projection.num_student, projection.num_teacher, dtype=torch.float64)
    for row, (tokens, weights) in enumerate(zip(projection.indices, projection.weights, strict=True)):
        for token, weight in zip(tokens, weights, strict=True):
            matrix[row, token] += float(weight)
    return matrix


def random_rows(num_rows: int, size: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(num_rows, size, generator=generator, dtype=torch.float64)).to(dtype)


def random_labels(num_rows: int, size: int, seed: int) -> Tensor:
    return torch.randint(size, (num_rows,), generator=torch.Generator().manual_seed(seed))


def side(log_probs: Tensor, labels: Tensor, spans: list[tuple[int, int]]) -> SideRows:
    span = torch.full((len(labels),), len(spans))
    for index, (start, end) in enumerate(spans):
        span[start:end] = index
    first = torch.tensor([start for start, _ in spans], dtype=torch.long)
    length = torch.tensor([end - start for start, end in spans], dtype=torch.long)
    return SideRows(log_probs, labels, first, length, span)


def block_of(
    student: Tensor, teacher: Tensor, labels: tuple[Tensor, Tensor], spans: list[tuple[int, int, int, int]]
) -> SpanBlock:
    return SpanBlock(
        side(student.log_softmax(-1), labels[0], [(a, b) for a, b, _, _ in spans]),
        side(teacher.log_softmax(-1), labels[1], [(c, d) for _, _, c, d in spans]),
    )


def bound(loss: MatchedRowLoss, projection: Projection | None = None) -> MatchedRowLoss:
    class _Any:
        vocabulary_fingerprint = "same"

    vocabulary = cast(CanonicalVocabulary, _Any())
    loss.bind(vocabulary, vocabulary, projection)
    return loss


def cases() -> list[tuple[str, MatchedRowLoss, int]]:
    """Name, loss, teacher's vocabulary size."""
    made: list[tuple[str, MatchedRowLoss, int]] = []
    for merge in MERGES:
        made.append((f"p-kl-{merge}", bound(ProjectionKL(merge=merge), random_projection()), V_T))
        made.append((f"kl-{merge}", bound(TokenKL(merge=merge)), V_S))
    return made


every_loss = pytest.mark.parametrize(
    ("loss", "size"), [case[1:] for case in cases()], ids=[case[0] for case in cases()]
)
LABELS = (random_labels(NUM_STUDENT_ROWS, V_S, 3), random_labels(NUM_TEACHER_ROWS, V_T, 4))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("seed", range(5))
def test_projection_kl_agrees_with_the_slow_reference(merge: Merge, seed: int) -> None:
    projection = random_projection(seed)
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, seed), random_rows(NUM_TEACHER_ROWS, V_T, seed + 100)
    ours = bound(ProjectionKL(merge=merge), projection)(block_of(student, teacher, LABELS, SPANS)).loss
    theirs = reference.projection_kl(
        student.log_softmax(-1), teacher.log_softmax(-1), *LABELS, SPANS, dense(projection), merge=merge
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_token_kl_agrees_with_the_slow_reference() -> None:
    student, teacher = random_rows(8, V_S, 1), random_rows(8, V_S, 2)
    labels = random_labels(8, V_S, 5)
    spans = [(i, i + 1, i, i + 1) for i in range(8)]
    ours = bound(TokenKL())(block_of(student, teacher, (labels, labels), spans)).loss
    theirs = reference.token_kl(student.log_softmax(-1), teacher.log_softmax(-1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("merge", MERGES)
def test_gradient_of_projection_kl_agrees_with_that_of_the_slow_reference(merge: Merge) -> None:
    projection = random_projection()
    teacher = random_rows(NUM_TEACHER_ROWS, V_T, 7)
    ours, theirs = (random_rows(NUM_STUDENT_ROWS, V_S, 6).requires_grad_() for _ in range(2))
    bound(ProjectionKL(merge=merge), projection)(block_of(ours, teacher, LABELS, SPANS)).loss.sum().backward()
    reference.projection_kl(
        theirs.log_softmax(-1), teacher.log_softmax(-1), *LABELS, SPANS, dense(projection), merge=merge
    ).sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10)


@every_loss
def test_loss_passes_gradcheck(loss: MatchedRowLoss, size: int) -> None:
    teacher = random_rows(NUM_TEACHER_ROWS, size, 8)
    student = random_rows(NUM_STUDENT_ROWS, V_S, 9).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: loss(block_of(rows, teacher, LABELS, SPANS)).loss, student)


@every_loss
def test_loss_of_no_span_is_empty_and_has_a_gradient(loss: MatchedRowLoss, size: int) -> None:
    student = random_rows(3, V_S, 1).requires_grad_()
    teacher = random_rows(0, size, 2)
    labels = (random_labels(3, V_S, 3), random_labels(0, size, 3))
    result = loss(block_of(student, teacher, labels, []))
    assert result.loss.shape == (0,)
    result.loss.sum().backward()
    assert student.grad is not None
    assert (student.grad == 0).all()


@every_loss
def test_loss_is_never_negative(loss: MatchedRowLoss, size: int) -> None:
    for seed in range(20):
        student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, seed), random_rows(NUM_TEACHER_ROWS, size, seed + 50)
        assert (loss(block_of(student, teacher, LABELS, SPANS)).loss >= -1e-12).all()


@every_loss
def test_single_precision_is_close_to_double(loss: MatchedRowLoss, size: int) -> None:
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, size, 2)
    double = loss(block_of(student, teacher, LABELS, SPANS)).loss
    single = loss(block_of(student.float(), teacher.float(), LABELS, SPANS)).loss
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("merge", MERGES)
def test_identity_projection_reduces_to_kl(merge: Merge) -> None:
    identity = Projection(
        torch.arange(V_S)[:, None], torch.ones(V_S, 1), torch.ones(V_S, dtype=torch.bool), V_S, "s", "t"
    )
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_S, 2)
    block = block_of(
        student, teacher, LABELS, SPANS if merge == "chain_rule" else [(i, i + 1, i, i + 1) for i in range(9)]
    )
    projected = bound(ProjectionKL(merge=merge), identity)(block)
    torch.testing.assert_close(projected.loss, bound(TokenKL(merge=merge))(block).loss, rtol=0, atol=1e-12)
    assert (projected.unmapped_mass < 1e-12).all()


def test_loss_is_zero_where_both_sides_agree_on_spans_of_any_length() -> None:
    rows, labels = random_rows(6, V_S, 1), random_labels(6, V_S, 2)
    block = block_of(rows, rows, (labels, labels), [(0, 1, 0, 1), (1, 4, 1, 4), (4, 6, 4, 6)])
    torch.testing.assert_close(bound(TokenKL())(block).loss, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-14)


def test_chain_rule_compares_the_probability_of_the_whole_span() -> None:
    # One student token that the teacher writes in two: p_S = (0.7, 0.3), p_T = (0.4, 0.6), continuation 0.25.
    student = torch.tensor([[0.7, 0.3]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.4, 0.6], [0.75, 0.25]], dtype=torch.float64).log()
    identity = Projection(torch.tensor([[0], [1]]), torch.ones(2, 1), torch.ones(2, dtype=torch.bool), 2, "s", "t")
    block = block_of(student, teacher, (torch.tensor([0]), torch.tensor([0, 1])), [(0, 1, 0, 2)])
    loss = bound(ProjectionKL(), identity)(block).loss
    expected = 0.1 * math.log(0.1 / 0.7) + 0.15 * math.log(0.15 / 0.3) - 0.25 + 1.0
    assert loss.tolist() == pytest.approx([expected], abs=1e-14)


def test_mass_on_zero_rows_is_reported_as_unmapped() -> None:
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    scores = bound(ProjectionKL(), random_projection())(block_of(student, teacher, LABELS, SPANS))
    firsts = torch.tensor([start for start, *_ in SPANS])
    expected = student.softmax(-1)[firsts, -2:].sum(-1)  # the last two rows of the projection are zero
    torch.testing.assert_close(scores.unmapped_mass, expected, rtol=0, atol=1e-12)


def test_teacher_tokens_that_no_student_token_reaches_do_not_make_the_loss_infinite() -> None:
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    teacher[:, -1] = 50.0  # all of the teacher's mass is on a token that W does not reach
    loss = bound(ProjectionKL(), random_projection())(block_of(student, teacher, LABELS, SPANS)).loss
    assert torch.isfinite(loss).all()


@every_loss
def test_a_student_probability_that_underflows_gives_a_finite_loss_and_gradient(
    loss: MatchedRowLoss, size: int
) -> None:
    student = random_rows(NUM_STUDENT_ROWS, V_S, 1, torch.float32) * 200
    student.requires_grad_()
    result = loss(block_of(student, random_rows(NUM_TEACHER_ROWS, size, 2, torch.float32), LABELS, SPANS)).loss
    result.sum().backward()
    assert torch.isfinite(result).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_ids_that_do_not_exist_take_no_part() -> None:
    student, teacher = random_rows(5, V_S, 1).requires_grad_(), random_rows(5, V_S, 2)
    labels = random_labels(5, V_S - 1, 3)
    spans = [(0, 1, 0, 1), (1, 3, 1, 2), (3, 5, 2, 5)]
    hole = torch.arange(V_S) == V_S - 1
    with_hole = block_of(
        student.masked_fill(hole, -torch.inf), teacher.masked_fill(hole, -torch.inf), (labels,) * 2, spans
    )
    without = block_of(student[:, :-1], teacher[:, :-1], (labels,) * 2, spans)
    loss = bound(TokenKL())(with_hole).loss
    torch.testing.assert_close(loss, bound(TokenKL())(without).loss, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, -1] == 0).all()


@every_loss
def test_agreement_is_reported_in_evaluation_only(loss: MatchedRowLoss, size: int) -> None:
    block = block_of(random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, size, 2), LABELS, SPANS)
    assert loss.train()(block).agreement is None
    agreement = loss.eval()(block).agreement
    loss.train()
    assert agreement is not None
    assert agreement.shape == (len(SPANS),)


def test_agreement_counts_the_same_top_token_after_projection() -> None:
    projection = random_projection()
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    agreement = bound(ProjectionKL(), projection).eval()(block_of(student, teacher, LABELS, SPANS)).agreement
    expected = [
        float((student[a].softmax(-1) @ dense(projection)).argmax() == teacher[c].argmax()) for a, _, c, _ in SPANS
    ]
    assert agreement is not None
    assert agreement.tolist() == expected


def test_unknown_merge_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="chain_rule, mean, got 'sum'"):
        ProjectionKL(merge=cast(Merge, "sum"))


def test_projection_kl_without_a_projection_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a projection"):
        bound(ProjectionKL(), None)


def test_projection_of_zero_rows_only_is_refused() -> None:
    nothing = Projection(
        torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4), torch.zeros(3, dtype=torch.bool), 5, "s", "t"
    )
    with pytest.raises(ValueError, match="only zero rows"):
        bound(ProjectionKL(), nothing)
