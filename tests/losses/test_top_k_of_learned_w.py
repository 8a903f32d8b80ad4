"""P-KL over the teacher's k most probable tokens with a W that is learned, and which columns of W it reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_vocabularies import V_S, V_T, bound, random_projection
from reference_losses import divergence as slow_divergence
from reference_losses import merge_span
from span_rows import LABELS, NUM_STUDENT_ROWS, NUM_TEACHER_ROWS, SPANS, block_of, random_rows
from torch import Tensor

from xtoken_pl import ProjectionKL
from xtoken_pl.losses import Divergence


def rows() -> tuple[Tensor, Tensor]:
    """Logits of both sides."""
    return random_rows(NUM_STUDENT_ROWS, V_S, 1).requires_grad_(), random_rows(NUM_TEACHER_ROWS, V_T, 2)


def make(*, learned: bool, **options: Any) -> ProjectionKL:
    """A bound loss, whose learned weights are in double precision and have moved."""
    loss = bound(ProjectionKL(**options), random_projection())
    assert isinstance(loss, ProjectionKL)
    if learned:
        loss.learn_projection()
        assert loss.learned is not None
        moves = torch.randn(loss.learned.logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        loss.learned.logits = torch.nn.Parameter(loss.learned.logits.detach() + moves)
        loss.learned.base = loss.learned.base.double()
    return loss


def slow_loss(loss: ProjectionKL, student: Tensor, teacher: Tensor) -> Tensor:
    """Span by span, with the dense matrix of the current weights."""
    assert loss.learned is not None
    indices, weights = random_projection().indices, loss.learned.weights()
    places = torch.arange(V_S)[:, None].expand_as(indices), indices
    matrix = torch.zeros(V_S, V_T, dtype=torch.float64).index_put(places, weights, accumulate=True)
    reached = [t for t in range(V_T) if matrix[:, t].any()]
    sides = student.log_softmax(-1), teacher.log_softmax(-1)
    losses = []
    for a, b, c, d in SPANS:
        p = merge_span(sides[1], LABELS[1], c, d, "chain_rule")[0][reached]
        q = (matrix.T @ merge_span(sides[0], LABELS[0], a, b, "chain_rule")[0])[reached]
        kept = sorted(range(len(reached)), key=lambda t: -float(p[t]))[: loss.teacher_top_k]
        others = [t for t in range(len(reached)) if t not in kept]
        p, q = (torch.cat([side[kept], side[others].sum()[None]]) for side in (p, q))
        losses.append(slow_divergence(p, q, loss.divergence, p.sum(), q.sum()))
    return torch.stack(losses)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jensen_shannon"])
@pytest.mark.parametrize("top_k", [1, 4, 8])
@pytest.mark.parametrize("reads_columns", [True, False], ids=["columns", "whole rows"])
def test_values_and_gradients_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, reads_columns: bool, top_k: int, divergence: Divergence
) -> None:
    """Of the student's logits and of those of W, whether columns are read, as on a CPU, or whole rows, as on a GPU."""
    monkeypatch.setattr(ProjectionKL, "_reads_columns", lambda *_: reads_columns)
    loss = make(learned=True, teacher_top_k=top_k, divergence=divergence)
    assert loss.learned is not None
    student, teacher = rows()
    ours, theirs = loss(block_of(student, teacher, LABELS, SPANS)).loss, slow_loss(loss, student, teacher)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    of_each = torch.arange(1.0, len(SPANS) + 1, dtype=torch.float64)
    inputs = student, loss.learned.logits
    gradients = [torch.autograd.grad((of_each * each).sum(), inputs) for each in (ours, theirs)]
    for our, their in zip(*gradients, strict=True):
        assert their.abs().max() > 1e-3
        torch.testing.assert_close(our, their, rtol=0, atol=1e-10)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("limited_later", [False, True], ids=["set", "limited by the teacher's source"])
def test_a_training_step_on_a_cpu_projects_no_whole_rows(
    monkeypatch: pytest.MonkeyPatch, learned: bool, limited_later: bool
) -> None:
    loss = make(learned=learned, **({} if limited_later else {"teacher_top_k": 3}))
    if limited_later:
        loss.limit_teacher_tokens(3)
    student, teacher = rows()
    expected = loss(block_of(student, teacher, LABELS, SPANS)).loss

    def refuse(*_: object) -> None:
        raise AssertionError("whole rows are projected")

    monkeypatch.setattr(ProjectionKL, "project", refuse)
    torch.testing.assert_close(loss(block_of(student, teacher, LABELS, SPANS)).loss, expected, rtol=0, atol=0)
    loss.teacher_top_k = None
    with pytest.raises(AssertionError, match="whole rows are projected"):
        loss(block_of(student, teacher, LABELS, SPANS))


@pytest.mark.parametrize("learned", [False, True])
def test_training_after_a_validation_in_inference_mode(learned: bool) -> None:
    loss, (student, teacher) = make(learned=learned, teacher_top_k=3), rows()
    with torch.inference_mode():
        evaluated = loss.eval()(block_of(student, teacher, LABELS, SPANS)).loss
    trained = loss.train()(block_of(student, teacher, LABELS, SPANS)).loss
    trained.sum().backward()
    torch.testing.assert_close(trained.detach(), evaluated.clone(), rtol=0, atol=0)
    assert student.grad is not None
    assert student.grad.any()


def test_a_loss_that_is_bound_again_reads_the_new_w() -> None:
    block = block_of(*rows(), LABELS, SPANS)
    loss, other = make(learned=False, teacher_top_k=3), bound(ProjectionKL(teacher_top_k=3), random_projection(seed=7))
    before = loss(block).loss
    bound(loss, random_projection(seed=7))
    torch.testing.assert_close(loss(block).loss, other(block).loss, rtol=0, atol=0)
    assert not torch.allclose(before, other(block).loss)
