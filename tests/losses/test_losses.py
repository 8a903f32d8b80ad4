"""Losses as functions of rows: against slow references, in gradient, at the edges."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, cast, get_args

import numpy as np
import pytest
import reference_losses as reference
import torch
from reference import common_pairs
from torch import Tensor

from xtoken_pl import GOLD, ULD, HybridKL, MatchedRowLoss, Projection, ProjectionKL, TokenKL
from xtoken_pl.losses import Divergence, Merge, SpanBlock, rank_distance, token_kl
from xtoken_pl.losses.base import SideRows
from xtoken_pl.losses.partitioned import PartitionedLoss
from xtoken_pl.losses.uld import sort_rows, sort_values
from xtoken_pl.tokenization import CanonicalVocabulary

# One-to-one, one-to-many, many-to-one and many-to-many spans, with gaps between them.
SPANS = [(0, 1, 0, 1), (1, 2, 1, 4), (3, 6, 4, 5), (6, 8, 5, 8), (9, 10, 8, 9)]
NUM_STUDENT_ROWS, NUM_TEACHER_ROWS = 10, 9
V_S, V_T = 13, 11
MERGES: tuple[Merge, ...] = get_args(Merge)
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)


class FakeVocabulary:
    """As much of a vocabulary as losses and partitions look at. None is a special token; ``holes`` do not exist."""

    name = "fake"

    def __init__(
        self,
        tokens: Sequence[bytes | None],
        *,
        roles: dict[str, int] | None = None,
        byte_pieces: Sequence[int] = (),
        holes: Sequence[int] = (),
        fingerprint: str = "same",
    ) -> None:
        self.token_bytes = [token or b"" for token in tokens]
        self.roles = roles or {}
        self.vocabulary_fingerprint = fingerprint
        self.is_byte_piece = np.isin(np.arange(len(tokens)), byte_pieces)
        self.exists = ~np.isin(np.arange(len(tokens)), holes)

    def __len__(self) -> int:
        return len(self.token_bytes)


def letters(text: str) -> CanonicalVocabulary:
    return cast(CanonicalVocabulary, FakeVocabulary([letter.encode() for letter in text]))


STUDENT, TEACHER = letters("abcdefghijklm"), letters("zydcxbwavuq")  # a, b, c and d are common


def slow_pairs(projection: Projection | None) -> list[tuple[int, int]]:
    """The strict C of STUDENT and TEACHER or, given W, the enlarged one."""
    rows = None
    if projection is not None:
        rows = {s: {t: w for t, w in enumerate(row) if w > 0} for s, row in enumerate(dense(projection).tolist())}
    tokens: Any = ([*STUDENT.token_bytes], [*TEACHER.token_bytes])
    return common_pairs(*tokens, {}, {}, rows)


def random_projection(seed: int = 0) -> Projection:
    """W from STUDENT to TEACHER: equal letters are exact, the other rows have one to four tokens.

    The last two rows are zero, and the last two teacher tokens are not reached.
    """
    generator = torch.Generator().manual_seed(seed)
    indices, weights = torch.zeros(V_S, 4, dtype=torch.long), torch.zeros(V_S, 4)
    exact = {s: t for s, t in slow_pairs(None) if t < V_T - 2}
    for row in range(V_S - 2):
        count = row % 4 + 1
        indices[row, :count] = torch.randperm(V_T - 2, generator=generator)[:count]
        weights[row, :count] = torch.rand(count, generator=generator) + 0.1
        if row in exact:
            indices[row], weights[row] = torch.tensor([exact[row], 0, 0, 0]), torch.tensor([1.0, 0, 0, 0])
        weights[row] /= weights[row].sum()
    # Weights in single precision sum to 1 only roughly; powers of two do so exactly.
    weights = (weights * 1024).round() / 1024
    weights[:, 0] += (weights.sum(1) > 0) * (1 - weights.sum(1))
    return Projection(indices, weights, torch.tensor([row in exact for row in range(V_S)]), V_T, "s", "t")


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


def bound(
    loss: MatchedRowLoss,
    projection: Projection | None = None,
    student: CanonicalVocabulary = STUDENT,
    teacher: CanonicalVocabulary = TEACHER,
) -> MatchedRowLoss:
    loss.bind(student, STUDENT if isinstance(loss, TokenKL) else teacher, projection)
    return loss


def cases() -> list[tuple[str, MatchedRowLoss, int]]:
    """Name, loss, teacher's vocabulary size."""
    made: list[tuple[str, MatchedRowLoss, int]] = []
    for merge in MERGES:
        made.append((f"uld-{merge}", bound(ULD(merge=merge)), V_T))
        for divergence in DIVERGENCES:
            options: Any = {"merge": merge, "divergence": divergence}
            name = f"{merge}-{divergence}"
            made.append((f"p-kl-{name}", bound(ProjectionKL(**options), random_projection()), V_T))
            made.append((f"kl-{name}", bound(TokenKL(**options)), V_S))
            made.append((f"gold-{name}", bound(GOLD(**options)), V_T))
            made.append((f"h-kl-{name}", bound(HybridKL(**options), random_projection()), V_T))
    return made


every_loss = pytest.mark.parametrize(
    ("loss", "size"), [case[1:] for case in cases()], ids=[case[0] for case in cases()]
)
LABELS = (random_labels(NUM_STUDENT_ROWS, V_S, 3), random_labels(NUM_TEACHER_ROWS, V_T, 4))


def slow(loss: MatchedRowLoss, student: Tensor, teacher: Tensor, projection: Projection) -> Tensor:
    """The reference of a loss, with its options."""
    rows = (student.log_softmax(-1), teacher.log_softmax(-1), *LABELS, SPANS)
    if isinstance(loss, ULD):
        return reference.uld(*rows, loss.merge)
    kind = cast(Divergence, loss.divergence)
    if isinstance(loss, TokenKL):
        return reference.token_divergence(*rows, loss.merge, kind)
    if isinstance(loss, ProjectionKL):
        return reference.projection_divergence(*rows, dense(projection), loss.merge, kind)
    assert isinstance(loss, PartitionedLoss)
    pairs = slow_pairs(projection if isinstance(loss, HybridKL) else None)
    rest = [[i for i in range(size) if i not in {pair[side] for pair in pairs}] for side, size in ((0, V_S), (1, V_T))]
    return reference.hybrid(*rows, pairs, rest[0], rest[1], loss.kl_weight, loss.uld_weight, loss.merge, kind)


def test_enlarged_pairs_are_not_those_of_equal_text() -> None:
    """Or H-KL and GOLD would be the same loss here, and no test could tell them apart."""
    strict, enlarged = slow_pairs(None), slow_pairs(random_projection())
    assert set(strict) < set(enlarged)
    assert len(enlarged) < V_T


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_agree_with_the_slow_reference(loss: MatchedRowLoss, size: int, seed: int) -> None:
    student = random_rows(NUM_STUDENT_ROWS, V_S, seed).requires_grad_()
    teacher = random_rows(NUM_TEACHER_ROWS, size, seed + 100)
    ours = loss(block_of(student, teacher, LABELS, SPANS)).loss
    theirs = slow(loss, student, teacher, random_projection())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    weights = torch.arange(1.0, len(SPANS) + 1, dtype=torch.float64)
    (ours_grad,) = torch.autograd.grad((weights * ours).sum(), student)
    (theirs_grad,) = torch.autograd.grad((weights * theirs).sum(), student)
    assert theirs_grad.abs().max() > 1e-3
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kl_weight", "uld_weight"), [(0.3, 1.7), (2.0, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("kind", [GOLD, HybridKL])
def test_weights_of_both_terms_agree_with_the_slow_reference(
    kind: type[PartitionedLoss], kl_weight: float, uld_weight: float
) -> None:
    projection = random_projection()
    loss = bound(kind(kl_weight=kl_weight, uld_weight=uld_weight), projection)
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    ours = loss(block_of(student, teacher, LABELS, SPANS)).loss
    torch.testing.assert_close(ours, slow(loss, student, teacher, projection), rtol=0, atol=1e-10)


@every_loss
def test_gradcheck(loss: MatchedRowLoss, size: int) -> None:
    student = random_rows(NUM_STUDENT_ROWS, V_S, 1).requires_grad_()
    teacher = random_rows(NUM_TEACHER_ROWS, size, 2)
    assert torch.autograd.gradcheck(lambda rows: loss(block_of(rows, teacher, LABELS, SPANS)).loss, student)


@every_loss
def test_loss_is_zero_where_both_sides_agree(loss: MatchedRowLoss, size: int) -> None:
    """The same rows, and everything paired with itself: of spans of one, two and three tokens."""
    identity = Projection(
        torch.arange(V_S)[:, None], torch.ones(V_S, 1), torch.ones(V_S, dtype=torch.bool), V_S, "s", "t"
    )
    options = {} if isinstance(loss, ULD) else {"divergence": cast(Any, loss).divergence}
    same = bound(type(loss)(merge=loss.merge, **options), identity, STUDENT, STUDENT)
    rows, labels = random_rows(6, V_S, 1), random_labels(6, V_S, 2)
    spans = [(0, 1, 0, 1), (1, 4, 1, 4), (4, 6, 4, 6)]
    if isinstance(loss, ProjectionKL) and loss.merge == "mean":
        spans = spans[:1]  # probabilities are averaged on one side, their logarithms on the other
    result = same(block_of(rows, rows, (labels, labels), spans))
    torch.testing.assert_close(result.loss, torch.zeros(len(spans), dtype=torch.float64), rtol=0, atol=1e-14)
    if not isinstance(loss, ULD):
        assert (result.unmapped_mass < 1e-12).all()


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
    """GOLD's common term alone can be; with a rank term of the same weight the sum is not."""
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


@pytest.mark.parametrize(("num_student", "num_teacher"), [(3, 8), (8, 3), (5, 5), (0, 4), (4, 0)])
def test_rank_distance_agrees_with_the_slow_reference_whichever_side_is_longer(
    num_student: int, num_teacher: int
) -> None:
    student, teacher = random_rows(6, num_student, 1).exp(), random_rows(6, num_teacher, 2).exp()
    expected = torch.stack([reference.rank_distance(*rows) for rows in zip(student, teacher, strict=True)])
    torch.testing.assert_close(rank_distance(student, teacher), expected, rtol=1e-12, atol=0)


def test_uld_does_not_see_which_token_has_which_probability() -> None:
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    singles = [(row, row + 1, row, row + 1) for row in range(NUM_TEACHER_ROWS)]
    shuffled = teacher[:, torch.randperm(V_T, generator=torch.Generator().manual_seed(0))]
    first = bound(ULD())(block_of(student, teacher, LABELS, singles)).loss
    second = bound(ULD())(block_of(student, shuffled, LABELS, singles)).loss
    torch.testing.assert_close(first, second, rtol=0, atol=1e-14)


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


@every_loss
def test_a_student_without_a_doubt_gives_a_finite_gradient_under_a_gradient_scaler(
    loss: MatchedRowLoss, size: int
) -> None:
    """All of its mass on a token that W has no place for, the others 80 nats below, or underflowed."""
    for gap in (80.0, 87.0, 200.0):
        student = torch.zeros(NUM_STUDENT_ROWS, V_S)
        student[:, -1] = gap
        student.requires_grad_()
        result = loss(block_of(student, random_rows(NUM_TEACHER_ROWS, size, 2, torch.float32), LABELS, SPANS)).loss
        (gradient,) = torch.autograd.grad(65536 * result.sum(), student)
        assert torch.isfinite(result).all()
        assert torch.isfinite(gradient).all()


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


@pytest.mark.parametrize("kind", [ProjectionKL, TokenKL, GOLD, HybridKL])
def test_unknown_divergence_is_refused_with_the_choices(kind: Any) -> None:
    with pytest.raises(ValueError, match="divergence must be one of forward, reverse, jensen_shannon, got 'js'"):
        kind(divergence="js")


@pytest.mark.parametrize("kind", [GOLD, HybridKL])
@pytest.mark.parametrize("name", ["kl_weight", "uld_weight"])
@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_weight_of_a_term_must_not_be_negative(kind: Any, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0, got {value}"):
        kind(**{name: value})


def test_weights_that_are_both_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="would be zero everywhere"):
        GOLD(kl_weight=0.0, uld_weight=0.0)


def test_empty_partition_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"GOLD needs tokens .* none in common \(\|C\| = 0.* use ProjectionKL or ULD"):
        bound(GOLD(), teacher=letters("uvwxyz"))
    nothing = Projection(
        torch.zeros(V_S, 4, dtype=torch.long), torch.zeros(V_S, 4), torch.zeros(V_S, dtype=torch.bool), V_T, "s", "t"
    )
    with pytest.raises(ValueError, match=r"HybridKL needs tokens .* none in common .* use ULD"):
        bound(HybridKL(), nothing, teacher=letters("uvwxyzopqrs"))


def test_hybrid_kl_without_a_projection_is_refused() -> None:
    with pytest.raises(ValueError, match="HybridKL needs a projection"):
        bound(HybridKL(), None)


def test_a_bound_loss_shows_its_partition() -> None:
    assert "|C| = 4, |U_S| = 9, |U_T| = 7" in repr(bound(GOLD()))
    assert "W: 4 exact" in repr(bound(ProjectionKL(), random_projection()))


def with_top_k(loss: MatchedRowLoss, top_k: int) -> MatchedRowLoss:
    """A bound copy that keeps the teacher's k most probable tokens."""
    other = copy.deepcopy(loss)
    other.teacher_top_k = top_k
    return other


@every_loss
def test_top_k_of_everything_is_the_exact_loss(loss: MatchedRowLoss, size: int) -> None:
    student = random_rows(NUM_STUDENT_ROWS, V_S, 1).requires_grad_()
    block = block_of(student, random_rows(NUM_TEACHER_ROWS, size, 2), LABELS, SPANS)
    exact, kept = (each(block).loss for each in (loss, with_top_k(loss, 100)))
    torch.testing.assert_close(kept, exact, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(each.sum(), student, retain_graph=True)[0] for each in (exact, kept)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@every_loss
@pytest.mark.parametrize("top_k", [1, 3])
def test_top_k_is_never_above_the_exact_loss_and_grows_with_k(loss: MatchedRowLoss, size: int, top_k: int) -> None:
    for seed in range(3):
        rows = random_rows(NUM_STUDENT_ROWS, V_S, seed), random_rows(NUM_TEACHER_ROWS, size, seed + 10)
        block = block_of(*rows, LABELS, SPANS)
        few, more, all_ = (each(block).loss for each in (with_top_k(loss, top_k), with_top_k(loss, 5), loss))
        assert (few <= more + 1e-12).all()
        assert (more <= all_ + 1e-12).all()
        assert (few < all_ - 1e-9).any()  # something was put together


@every_loss
def test_gradcheck_of_top_k(loss: MatchedRowLoss, size: int) -> None:
    student = random_rows(NUM_STUDENT_ROWS, V_S, 1).requires_grad_()
    teacher = random_rows(NUM_TEACHER_ROWS, size, 2)
    kept = with_top_k(loss, 2)
    assert torch.autograd.gradcheck(lambda rows: kept(block_of(rows, teacher, LABELS, SPANS)).loss, student)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("top_k", [1, 4])
def test_top_k_is_the_divergence_of_the_kept_tokens_and_one_bucket(divergence: Divergence, top_k: int) -> None:
    student, teacher = (random_rows(6, V_S, seed).softmax(-1) for seed in (1, 2))
    zeros = torch.zeros(6, dtype=torch.float64)
    ours = token_kl(student.log(), teacher.log(), zeros, zeros, divergence=divergence, top_k=top_k)
    for row, (p, q) in enumerate(zip(teacher.tolist(), student.tolist(), strict=True)):
        kept = sorted(range(V_S), key=lambda v: -p[v])[:top_k]
        buckets = [[v] for v in kept] + [[v for v in range(V_S) if v not in kept]]
        pairs = [(sum(p[v] for v in bucket), sum(q[v] for v in bucket)) for bucket in buckets]
        forms = {
            "forward": sum(a * math.log(a / b) for a, b in pairs),
            "reverse": sum(b * math.log(b / a) for a, b in pairs),
            "jensen_shannon": sum(
                0.5 * a * math.log(2 * a / (a + b)) + 0.5 * b * math.log(2 * b / (a + b)) for a, b in pairs
            ),
        }
        assert float(ours[row]) == pytest.approx(forms[divergence], abs=1e-12)


def test_rank_distance_of_the_highest_compares_the_rest_in_sum() -> None:
    student = torch.tensor([[0.1, 0.5, 0.2, 0.2]], dtype=torch.float64)
    teacher = torch.tensor([[0.3, 0.6, 0.1]], dtype=torch.float64)
    expected = abs(0.5 - 0.6) + abs(0.2 - 0.3) + abs(0.3 - 0.1)
    assert float(rank_distance(student, teacher, 2)) == pytest.approx(expected, abs=1e-12)


def test_top_k_below_one_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="teacher_top_k must be >= 1, got 0; None keeps"):
        ProjectionKL(teacher_top_k=0)


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("num_rows", [1, 5, 300])
def test_rows_are_sorted_as_by_comparison(num_rows: int, scale: float) -> None:
    rows = (scale * random_rows(num_rows, 700, 0, torch.float32)).softmax(-1)
    rows[:, ::50] = 0.0  # ties
    rows[0, 3] = torch.finfo(torch.float32).tiny / 8
    values, places = sort_rows(rows)
    assert torch.equal(values, rows.sort(dim=-1).values)
    assert torch.equal(rows.gather(1, places), values)
    assert torch.equal(places.sort(dim=-1).values, torch.arange(700).expand(num_rows, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_values_are_sorted_in_any_precision_and_the_rows_stay_as_they_were(dtype: torch.dtype) -> None:
    rows = random_rows(7, 300, 0, torch.float64).to(dtype)
    before = rows.clone()
    assert torch.equal(sort_values(rows), before.sort(dim=-1).values)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
def test_a_row_that_is_no_number_stays_alone(value: float) -> None:
    rows = random_rows(4, 300, 0, torch.float32).softmax(-1)
    rows[2] = math.copysign(value, value)
    other = random_rows(4, 200, 1, torch.float32).softmax(-1)
    distance = rank_distance(rows, other)
    whole = [0, 1, 3]
    assert torch.equal(distance[whole], rank_distance(rows[whole], other[whole]))
    assert not torch.isfinite(distance[2])
    values, places = sort_rows(torch.full((2, 3), -0.0))
    assert torch.equal(places, torch.arange(3).expand(2, 3))
    assert not values.any()
