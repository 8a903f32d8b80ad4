"""Losses over the teacher's k most probable tokens, the others as one bucket."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from fake_vocabularies import V_S
from loss_cases import CASES, DIVERGENCES, LossCase
from span_rows import random_rows

from xtoken_pl import MatchedRowLoss
from xtoken_pl.losses import Divergence
from xtoken_pl.losses.token_kl import token_kl
from xtoken_pl.losses.uld import rank_distance

every_matched_loss = pytest.mark.parametrize(
    "case", [case for case in CASES if issubclass(case.kind, MatchedRowLoss)], ids=str
)


def with_top_k(loss: MatchedRowLoss, top_k: int) -> MatchedRowLoss:
    """A bound copy that keeps the teacher's k most probable tokens."""
    other = copy.deepcopy(loss)
    other.teacher_top_k = top_k
    return other


@every_matched_loss
def test_top_k_of_everything_is_the_exact_loss(case: LossCase) -> None:
    rows = case.rows()
    student = rows.student.clone().requires_grad_()
    exact, kept = (each(rows.block(student)).loss for each in (case.loss, with_top_k(case.loss, 100)))
    torch.testing.assert_close(kept, exact, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(each.sum(), student, retain_graph=True)[0] for each in (exact, kept)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@every_matched_loss
@pytest.mark.parametrize("top_k", [1, 3])
def test_top_k_is_never_above_the_exact_loss_and_grows_with_k(case: LossCase, top_k: int) -> None:
    losses = with_top_k(case.loss, top_k), with_top_k(case.loss, 5), case.loss
    for seed in range(3):
        block = case.rows(seed=seed).block()
        few, more, all_ = (loss(block).loss for loss in losses)
        assert (few <= more + 1e-12).all()
        assert (more <= all_ + 1e-12).all()
        assert (few < all_ - 1e-9).any()  # something was put together


@every_matched_loss
def test_gradcheck_of_top_k(case: LossCase) -> None:
    rows, kept = case.rows(), with_top_k(case.loss, 2)
    assert torch.autograd.gradcheck(lambda student: kept(rows.block(student)).loss, rows.student.requires_grad_())


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
