"""Losses over the teacher's k most probable tokens, the others as one bucket."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from fake_vocabularies import V_S, dense, random_projection
from loss_cases import CASES, DIVERGENCES, LossCase
from reference_losses import divergence as slow_divergence
from reference_losses import merge_span
from slow_losses import spans_of
from span_rows import random_rows
from torch import Tensor

from xtoken_pl import MatchedRowLoss, ProjectionKL
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


def slow_kept_projection(case: LossCase, rows: Any, student: Tensor, top_k: int) -> Tensor:
    """P-KL of the k most probable tokens that W reaches and of one bucket, span by span."""
    merge, divergence = case.options["merge"], case.options["divergence"]
    projection = dense(random_projection())
    reached = projection.any(0).nonzero().squeeze(1).tolist()
    sides = student.log_softmax(-1), rows.teacher.log_softmax(-1)
    losses = []
    for a, b, c, d in spans_of(rows):
        p, _ = merge_span(sides[1], rows.labels[1], c, d, merge)
        if merge == "mean":
            q = torch.stack([projection.T @ sides[0][row].exp() for row in range(a, b)]).mean(0)
            p, q = p[reached] / p[reached].sum(), q[reached] / q[reached].sum()
        else:
            p, q = p[reached], (projection.T @ merge_span(sides[0], rows.labels[0], a, b, merge)[0])[reached]
        kept = sorted(range(len(reached)), key=lambda t: -float(p[t]))[:top_k]
        others = [t for t in range(len(reached)) if t not in kept]
        p, q = (torch.cat([side[kept], side[others].sum()[None]]) for side in (p, q))
        losses.append(slow_divergence(p, q, divergence, p.sum(), q.sum()))
    return torch.stack(losses)


@pytest.mark.parametrize("top_k", [1, 4, 8])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("case", [case for case in CASES if case.kind is ProjectionKL], ids=str)
def test_top_k_of_p_kl_is_that_of_the_formula(case: LossCase, learned: bool, top_k: int) -> None:
    """Learned weights take another way, along which a gradient reaches them."""
    loss = with_top_k(case.loss, top_k)
    if learned:
        loss.learn_projection()
    rows = case.rows()
    student = rows.student.clone().requires_grad_()
    ours, expected = loss(rows.block(student)).loss, slow_kept_projection(case, rows, student, top_k)
    tolerance = 1e-6 if learned else 1e-10  # a softmax in single precision gives the learned weights
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)
    gradients = [torch.autograd.grad(each.sum(), student)[0] for each in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", [case for case in CASES if case.kind is ProjectionKL], ids=str)
@pytest.mark.parametrize("memory", [1e9, 3e3])
def test_steps_over_few_tokens_are_those_of_the_losses_alone(case: LossCase, memory: float) -> None:
    """Kept, and in blocks that are computed again."""
    loss, rows = with_top_k(case.loss, 4), case.rows()
    student = rows.student.clone().requires_grad_()
    weights = torch.arange(1.0, len(rows.spans) + 1, dtype=torch.float64)
    scored = rows.evaluate(loss, student, memory=memory).spans["t"].loss
    expected = slow_kept_projection(case, rows, student, 4)
    torch.testing.assert_close(scored, expected, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad((weights * each).sum(), student)[0] for each in (scored, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_evaluation_has_the_loss_of_training_and_the_agreement_of_all_tokens() -> None:
    case = next(case for case in CASES if case.kind is ProjectionKL)
    exact, kept = with_top_k(case.loss, 100).eval(), with_top_k(case.loss, 2)
    block = case.rows().block()
    trained = kept(block)
    evaluated = kept.eval()(block)
    assert trained.agreement is None
    torch.testing.assert_close(evaluated.loss, trained.loss, rtol=0, atol=0)
    torch.testing.assert_close(evaluated.agreement, exact(block).agreement, rtol=0, atol=0)
    torch.testing.assert_close(evaluated.unmapped_mass, exact(block).unmapped_mass, rtol=0, atol=1e-12)


def test_rank_distance_of_the_highest_compares_the_rest_in_sum() -> None:
    student = torch.tensor([[0.1, 0.5, 0.2, 0.2]], dtype=torch.float64)
    teacher = torch.tensor([[0.3, 0.6, 0.1]], dtype=torch.float64)
    expected = abs(0.5 - 0.6) + abs(0.2 - 0.3) + abs(0.3 - 0.1)
    assert float(rank_distance(student, teacher, 2)) == pytest.approx(expected, abs=1e-12)
