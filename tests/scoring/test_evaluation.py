"""Scores and gradients of rows at the edges: padded heads, frozen inputs, half precision, no row, no gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fake_vocabularies import STUDENT, TEACHER, V_S
from head_rows import ALL_KEPT, NOTHING_KEPT, Rows, Unlearnable, assert_equal
from torch import Tensor

from xtoken_pl import GOLD, SpanLoss
from xtoken_pl.losses import SpanBlock, SpanScores
from xtoken_pl.models.head import accumulate_product, logits
from xtoken_pl.scoring.memory import LogitMemory


def test_padded_rows_of_the_head_have_no_gradient() -> None:
    rows = Rows()
    _, weight, bias = rows.gradients(rows.evaluate(LogitMemory(NOTHING_KEPT)))
    assert not weight[V_S:].any()
    assert not bias[V_S:].any()
    assert (weight[:V_S].abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("budget", [NOTHING_KEPT, ALL_KEPT])
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_frozen_input_gets_no_gradient_and_changes_no_other(budget: float, frozen: int) -> None:
    rows = Rows(torch.float64)
    expected = list(rows.gradients(rows.evaluate(LogitMemory(budget))))
    rows.inputs[frozen].requires_grad_(False)
    del expected[frozen]
    assert_equal(rows.gradients(rows.evaluate(LogitMemory(budget))), tuple(expected))


class Scored(SpanLoss):
    """Gives what it is told to."""

    def __init__(self, *values: Tensor | None) -> None:
        super().__init__()
        self.values: Any = values

    def forward(self, block: SpanBlock) -> SpanScores:
        return SpanScores(*self.values)


def test_a_loss_that_does_not_score_every_span_is_refused() -> None:
    rows, whole = Rows(num_rows=3), torch.ones(3)
    assert rows.evaluate(LogitMemory(1e9), Scored(whole, whole, None)).spans["t"].loss.tolist() == [1, 1, 1]
    for values in ((torch.tensor(1.0), whole), (whole, torch.ones(1)), (torch.ones(3, 2), whole)):
        with pytest.raises(ValueError, match=r"must score every span with one number.*of shape .* for 3 spans"):
            rows.evaluate(LogitMemory(1e9), Scored(*values, None))


def test_an_input_that_was_changed_in_place_is_refused() -> None:
    rows = Rows()
    scores = rows.evaluate(LogitMemory(NOTHING_KEPT))
    with torch.no_grad():
        rows.student_layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rows.gradients(scores)


@pytest.mark.parametrize("budget", [NOTHING_KEPT, ALL_KEPT])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_changes_the_products_alone(budget: float, dtype: torch.dtype) -> None:
    rows = Rows()
    with torch.no_grad():
        for tensor in (*rows.inputs, rows.teacher_layer.weight, rows.teacher_hidden):
            tensor.copy_(tensor.to(dtype))  # so that nothing but the logits is rounded
    exact = rows.gradients(rows.evaluate(LogitMemory(budget)))
    with torch.autocast("cpu", dtype=dtype):
        scores = rows.evaluate(LogitMemory(budget))
    assert scores.token_nats.dtype == torch.float32
    ours = rows.gradients(scores)
    assert [gradient.dtype for gradient in ours] == [torch.float32] * 3
    for one, other in zip(ours, exact, strict=True):
        assert (one - other).norm() < 20 * torch.finfo(dtype).eps * other.norm()


def test_no_rows_give_a_gradient_of_zeros() -> None:
    rows = Rows(num_rows=0)
    for gradient in rows.gradients(rows.evaluate(LogitMemory(ALL_KEPT))):
        assert gradient.count_nonzero() == 0


def test_rank_term_is_kept_like_any_other() -> None:
    rows, loss = Rows(torch.float64), GOLD()
    loss.bind(STUDENT, TEACHER, None)
    flat, kept = (rows.gradients(rows.evaluate(LogitMemory(b), loss)) for b in (NOTHING_KEPT, ALL_KEPT))
    assert_equal(kept, flat)


@pytest.mark.parametrize("budget", [NOTHING_KEPT, ALL_KEPT])
def test_a_loss_without_a_gradient_leaves_that_of_the_cross_entropy(budget: float) -> None:
    rows = Rows(torch.float64)
    scores = rows.evaluate(LogitMemory(budget), Unlearnable())
    (gradient,) = torch.autograd.grad(scores.token_nats.sum() + scores.spans["t"].loss.sum(), rows.hidden)
    logits = rows.student_layer(rows.hidden)[:, :V_S]
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, rows.labels, reduction="sum"), rows.hidden)
    assert_equal((gradient,), (expected,))


def test_a_large_head_is_multiplied_tile_by_tile() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 256, generator=generator, dtype=torch.float64) for n in (3, 2500))
    bias = torch.randn(2500, generator=generator, dtype=torch.float64)
    ours = logits(hidden, weight, bias, out=torch.full((3, 2500), torch.nan, dtype=torch.float64))
    torch.testing.assert_close(ours, hidden @ weight.T + bias, rtol=1e-12, atol=1e-12)


def test_a_gradient_in_half_precision_is_added_tile_by_tile() -> None:
    generator = torch.Generator().manual_seed(0)
    grad, rows = torch.randn(3, 9000, generator=generator), torch.randn(3, 4, generator=generator)
    grad, rows = grad.bfloat16(), rows.bfloat16()
    total = torch.full((9000, 4), torch.nan)
    accumulate_product(total, grad, rows, is_first=True)
    torch.testing.assert_close(total, (grad.T @ rows).float())
    accumulate_product(total, grad, rows, is_first=False)
    torch.testing.assert_close(total, 2 * (grad.T @ rows).float())
