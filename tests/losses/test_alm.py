"""ALM: by hand, near the ends of the probabilities, and with stored likelihoods."""

from __future__ import annotations

import math

import pytest
import torch
from fake_vocabularies import STUDENT, TEACHER, V_S, V_T
from known_sides import known_teacher
from loss_cases import DIVERGENCES
from plain_divergences import listed_divergence
from span_rows import LABELS, NUM_STUDENT_ROWS, NUM_TEACHER_ROWS, SPANS, block_of, random_rows
from torch import Tensor

from xtoken_pl import ALM
from xtoken_pl.losses import Divergence, RowContent, SpanBlock
from xtoken_pl.losses.alm import binary_divergence, log_one_minus_exp

every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)
EPSILON = 1e-6


def alm(tau: float = 100.0, divergence: Divergence = "forward") -> ALM:
    loss = ALM(tau, divergence=divergence)
    loss.bind(STUDENT, TEACHER, None)
    return loss


def block(student: Tensor | None = None) -> SpanBlock:
    student = random_rows(NUM_STUDENT_ROWS, V_S, 1) if student is None else student
    return block_of(student, random_rows(NUM_TEACHER_ROWS, V_T, 2), LABELS, SPANS)


@every_divergence
@pytest.mark.parametrize("tau", [0.5, 1.0, 20.0, 100.0])
def test_loss_by_hand_of_spans_of_all_kinds(tau: float, divergence: Divergence) -> None:
    rows = block()
    losses = alm(tau, divergence)(rows).loss.tolist()
    for loss, (a, b, c, d) in zip(losses, SPANS, strict=True):
        student = sum(float(rows.student.log_probs[row, LABELS[0][row]]) for row in range(a, b))
        teacher = sum(float(rows.teacher.log_probs[row, LABELS[1][row]]) for row in range(c, d))
        p, q = (math.exp(log / tau - EPSILON) for log in (student, teacher))
        assert loss == pytest.approx(listed_divergence([q, 1 - q], [p, 1 - p], divergence), rel=1e-9, abs=1e-12)


@every_divergence
def test_a_span_counts_by_its_likelihood_however_many_tokens_have_it(divergence: Divergence) -> None:
    student = torch.tensor([[0.5, 0.5], [0.2, 0.8], [0.1, 0.9]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.3, 0.7]] * 2, dtype=torch.float64).log()
    labels = torch.tensor([0, 0, 0]), torch.tensor([0, 0])
    rows = block_of(student, teacher, labels, [(0, 2, 0, 1), (2, 3, 1, 2)])
    two, one = alm(7.0, divergence)(rows).loss.tolist()
    assert two == pytest.approx(one, abs=1e-14)
    assert one > 1e-4


def test_only_observed_tokens_choose_the_loss() -> None:
    """Where the rest of a row's mass lies does not matter."""
    rows = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.1, 0.4]], dtype=torch.float64).log()
    labels = torch.tensor([0]), torch.tensor([0])
    teacher = random_rows(1, 3, 2)
    one, other = (alm()(block_of(row[None], teacher, labels, [(0, 1, 0, 1)])).loss for row in rows)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_of_a_large_tau_the_loss_is_its_limit() -> None:
    rows = block()
    student, teacher = (side.log_likelihood() for side in (rows.student, rows.teacher))
    limit = teacher - student + teacher * (student / teacher).log()
    tau = 1e4
    torch.testing.assert_close(tau * binary_divergence(student / tau, teacher / tau), limit, rtol=0.01, atol=1e-3)


@every_divergence
@pytest.mark.parametrize("tau", [1.0, 100.0])
def test_gradcheck(tau: float, divergence: Divergence) -> None:
    student = random_rows(NUM_STUDENT_ROWS, V_S, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: alm(tau, divergence)(block(logits)).loss, student)


@every_divergence
@pytest.mark.parametrize("tau", [1.0, 100.0])
@pytest.mark.parametrize("gap", [5.0, 15.0, 17.5, 30.0, 120.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_likelihood_near_one_is_finite_under_a_gradient_scaler(
    tau: float, divergence: Divergence, gap: float, dtype: torch.dtype
) -> None:
    """Of the student, of the teacher, or of both, in single precision and of logits in half precision."""
    labels = torch.zeros(4, dtype=torch.long)
    spans = [(0, 1, 0, 1), (1, 2, 1, 2), (2, 4, 2, 4)]
    certain, unsure = (torch.zeros(4, 3, dtype=dtype) for _ in range(2))
    certain[:, 0], unsure[:, 0] = gap, -1.0
    for student, teacher in ((certain, unsure), (unsure, certain), (certain, certain)):
        leaf = student.clone().requires_grad_()
        loss = alm(tau, divergence)(block_of(leaf.float(), teacher.float(), (labels, labels), spans)).loss
        (gradient,) = torch.autograd.grad(65536 * loss.sum(), leaf)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        assert gradient.abs().max() <= 65536 * 16  # a pull, not a jump
        if student is teacher:
            torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-6)


def test_logarithm_of_one_minus_p_is_accurate_in_single_precision() -> None:
    exponents = -torch.logspace(-7, 2, 400, dtype=torch.float64).float()
    exact = [math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x)) for x in exponents.tolist()]
    torch.testing.assert_close(
        log_one_minus_exp(exponents).double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-6, atol=1e-37
    )
    leaf = exponents.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_one_minus_exp(leaf).sum(), leaf)
    expected = torch.tensor([-1 / math.expm1(-x) for x in exponents.tolist()], dtype=torch.float64)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-37)


@every_divergence
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("rows", "top_k"), [("span_starts", "all"), ("all", 1), ("all", "all")])
def test_stored_rows_give_the_same_loss(
    rows: str, top_k: int | str, temperature: float, divergence: Divergence
) -> None:
    loss, logits = alm(10.0, divergence), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    known = known_teacher(loss, logits, LABELS[1], SPANS, rows=rows, top_k=top_k, temperature=temperature)
    live = block_of(random_rows(NUM_STUDENT_ROWS, V_S, 1), logits / temperature, LABELS, SPANS)
    torch.testing.assert_close(
        loss(SpanBlock(live.student, known)).loss, loss(live).loss, rtol=1e-5, atol=1e-6, check_dtype=False
    )


def test_one_stored_token_of_each_span_gives_the_exact_loss_at_temperature_1() -> None:
    """The likelihood of a span is stored beside its tokens, even where its first token is not among them."""
    loss, logits, live = alm(10.0), random_rows(NUM_TEACHER_ROWS, V_T, 2), block()
    known = known_teacher(loss, logits, LABELS[1], SPANS, top_k=1)
    assert (logits[live.teacher.first].argmax(-1) != known.labels).any()
    torch.testing.assert_close(
        loss(SpanBlock(live.student, known)).loss, loss(live).loss, rtol=1e-5, atol=1e-6, check_dtype=False
    )


def test_likelihoods_of_span_starts_are_all_that_is_needed() -> None:
    assert ALM().row_needs == RowContent("span_starts")
    assert ALM().limit_teacher_tokens(3) is None


@pytest.mark.parametrize("tau", [0.0, -1.0, math.inf, math.nan])
def test_a_tau_that_is_not_positive_is_refused(tau: float) -> None:
    with pytest.raises(ValueError, match=f"tau must be a finite number > 0, got {tau}"):
        ALM(tau)
