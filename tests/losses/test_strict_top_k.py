"""Strict one-to-one matching: by hand, what it leaves out, and what it reduces to."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from fake_vocabularies import STUDENT, TEACHER, V_S, V_T, bound, letters, slow_pairs
from known_sides import known_teacher
from loss_cases import DIVERGENCES
from plain_divergences import listed_divergence
from span_rows import LABELS, NUM_STUDENT_ROWS, NUM_TEACHER_ROWS, SPANS, block_of, random_labels, random_rows
from torch import Tensor

from xtoken_pl import StrictTopK, TokenKL
from xtoken_pl.losses import Divergence, RowContent, SpanBlock

every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)
#: The spans of one token on both sides.
ONE_TO_ONE = [k for k, (a, b, c, d) in enumerate(SPANS) if (b - a, d - c) == (1, 1)]


def strict(
    student_top_k: int | None = None, divergence: Divergence = "reverse", teacher_top_k: int | None = None
) -> StrictTopK:
    loss = StrictTopK(student_top_k, divergence=divergence, teacher_top_k=teacher_top_k)
    loss.bind(STUDENT, TEACHER, None)
    return loss


def block(student: Tensor | None = None, seed: int = 1) -> SpanBlock:
    student = random_rows(NUM_STUDENT_ROWS, V_S, seed) if student is None else student
    return block_of(student, random_rows(NUM_TEACHER_ROWS, V_T, seed + 100), LABELS, SPANS)


@every_divergence
@pytest.mark.parametrize("student_top_k", [None, 2, 3])
def test_loss_by_hand(student_top_k: int | None, divergence: Divergence) -> None:
    rows = block()
    losses = strict(student_top_k, divergence)(rows).loss.tolist()
    for k, (a, _, c, _) in enumerate(SPANS):
        if k not in ONE_TO_ONE:
            assert losses[k] == 0.0
            continue
        p, q = rows.student.log_probs[a].exp().tolist(), rows.teacher.log_probs[c].exp().tolist()
        pairs = sorted(slow_pairs(None), key=lambda pair: -p[pair[0]])[:student_top_k]
        ours, theirs = [p[s] for s, _ in pairs], [q[t] for _, t in pairs]
        expected = listed_divergence([x / sum(theirs) for x in theirs], [x / sum(ours) for x in ours], divergence)
        assert losses[k] == pytest.approx(expected, abs=1e-12)


@every_divergence
@pytest.mark.parametrize("student_top_k", [None, 2])
def test_other_spans_have_neither_loss_nor_gradient(student_top_k: int | None, divergence: Divergence) -> None:
    student = random_rows(NUM_STUDENT_ROWS, V_S, 1).requires_grad_()
    scores = strict(student_top_k, divergence)(block(student))
    (gradient,) = torch.autograd.grad(scores.loss.sum(), student)
    others = [k for k in range(len(SPANS)) if k not in ONE_TO_ONE]
    assert len(others) == 3
    assert scores.loss[others].tolist() == [0.0] * 3
    assert scores.unmapped_mass[others].tolist() == [1.0] * 3
    compared = [SPANS[k][0] for k in ONE_TO_ONE]
    assert (gradient[compared].abs().sum(-1) > 1e-3).all()
    gradient[compared] = 0
    assert not gradient.any()


@every_divergence
def test_of_one_tokenizer_it_is_token_kl(divergence: Divergence) -> None:
    rows, labels = (random_rows(5, V_S, 1), random_rows(5, V_S, 2)), random_labels(5, V_S, 3)
    both = block_of(*rows, (labels, labels), [(k, k + 1, k, k + 1) for k in range(5)])
    loss = StrictTopK(divergence=divergence)
    loss.bind(STUDENT, STUDENT, None)
    expected = bound(TokenKL(divergence=divergence))(both).loss
    torch.testing.assert_close(loss(both).loss, expected, rtol=0, atol=1e-12)


@every_divergence
def test_as_many_tokens_as_there_are_is_all_of_them_and_one_is_nothing(divergence: Divergence) -> None:
    rows = block()
    everything = strict(None, divergence)(rows).loss
    for count in (len(slow_pairs(None)), 1000):
        torch.testing.assert_close(strict(count, divergence)(rows).loss, everything, rtol=0, atol=1e-14)
    torch.testing.assert_close(strict(1, divergence)(rows).loss, torch.zeros_like(everything), rtol=0, atol=1e-14)


@every_divergence
def test_mass_on_other_tokens_does_not_matter(divergence: Divergence) -> None:
    student = random_rows(NUM_STUDENT_ROWS, V_S, 1)
    common = [s for s, _ in slow_pairs(None)]
    elsewhere = student.clone()
    elsewhere[:, [s for s in range(V_S) if s not in common]] += 9.0
    for count in (None, 2):
        expected = strict(count, divergence)(block(student)).loss
        torch.testing.assert_close(strict(count, divergence)(block(elsewhere)).loss, expected, rtol=0, atol=1e-12)


@every_divergence
@pytest.mark.parametrize(("student_top_k", "teacher_top_k"), [(None, None), (2, None), (None, 2), (3, 1)])
def test_gradcheck(student_top_k: int | None, teacher_top_k: int | None, divergence: Divergence) -> None:
    loss = strict(student_top_k, divergence, teacher_top_k)
    student = random_rows(NUM_STUDENT_ROWS, V_S, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: loss(block(logits)).loss, student)


@every_divergence
def test_fewer_teacher_tokens_never_raise_the_loss(divergence: Divergence) -> None:
    for seed in range(3):
        few, more, everything = (strict(None, divergence, k)(block(seed=seed)).loss for k in (1, 2, None))
        assert (few <= more + 1e-12).all()
        assert (more <= everything + 1e-12).all()
        assert (few < everything - 1e-9).any()


@every_divergence
def test_a_teacher_without_mass_where_the_student_has_it_gives_a_finite_gradient(divergence: Divergence) -> None:
    student, teacher = torch.zeros(1, V_S, requires_grad=True), torch.zeros(1, V_T)
    teacher[0, slow_pairs(None)[0][1]] = -torch.inf
    labels = torch.tensor([0]), torch.tensor([0])
    loss = strict(None, divergence)(block_of(student, teacher, labels, [(0, 1, 0, 1)])).loss
    (gradient,) = torch.autograd.grad(65536 * loss.sum(), student)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("rows", ["span_starts", "all"])
def test_stored_rows_give_the_same_loss(rows: str) -> None:
    """With a row for each span, too, spans of several teacher tokens have no loss."""
    loss, live = strict(2), block()
    known = known_teacher(loss, random_rows(NUM_TEACHER_ROWS, V_T, 101), LABELS[1], SPANS, rows=rows)
    stored = loss(SpanBlock(live.student, known)).loss
    torch.testing.assert_close(stored, loss(live).loss, rtol=0, atol=1e-5, check_dtype=False)


def test_rows_of_span_starts_are_all_that_is_needed() -> None:
    assert StrictTopK(4, teacher_top_k=9).row_needs == RowContent("span_starts", 9)


@pytest.mark.parametrize("count", [0, -3, 1.5])
def test_number_of_tokens_below_one_is_refused_with_the_way_out(count: float) -> None:
    with pytest.raises(ValueError, match=rf"student_top_k must be .*>= 1, got {count}; None compares all common"):
        StrictTopK(cast(int, count))


def test_vocabularies_without_a_common_token_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"StrictTopK needs tokens .* none in common; use BytePrefixKL, ALM or ULD"):
        StrictTopK().bind(STUDENT, letters("uvwxyz"), None)
