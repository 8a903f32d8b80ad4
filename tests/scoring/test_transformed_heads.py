"""Heads whose logits are multiplied, divided or soft-capped, as students and as teachers."""

from __future__ import annotations

import pytest
import torch
from architectures import LOGITS
from fake_vocabularies import STUDENT, TEACHER, V_S, V_T, random_projection
from head_rows import ALL_KEPT, NOTHING_KEPT, Rows, assert_equal
from transformed_steps import TRANSFORMED

from xtoken_pl import ProjectionKL
from xtoken_pl.losses import SpanBlock
from xtoken_pl.losses.base import SideRows
from xtoken_pl.models.logit_transform import LogitTransform
from xtoken_pl.scoring.memory import LogitMemory


@pytest.mark.parametrize("budget", [NOTHING_KEPT, ALL_KEPT])
@pytest.mark.parametrize("transform", [LogitTransform(0.25), LogitTransform(cap=1.5), LogitTransform(0.5, cap=2.0)])
def test_loss_and_gradient_are_those_of_full_logits(transform: LogitTransform, budget: float) -> None:
    rows = Rows(torch.float64, transform=transform)
    scores = rows.evaluate(LogitMemory(budget), temperature=1.5)
    ours = rows.gradients(scores)

    loss = ProjectionKL()
    loss.bind(STUDENT, TEACHER, random_projection())
    student = transform(rows.student_layer(rows.hidden)[:, :V_S]).log_softmax(-1)
    teacher = transform(rows.teacher_layer(rows.teacher_hidden)[:, :V_T])
    every = torch.arange(len(rows.hidden))
    ones = torch.ones_like(every)
    sides = [
        SideRows((logits / 1.5).log_softmax(-1), labels, every, ones, every)
        for logits, labels in ((student, rows.labels), (teacher, rows.teacher_labels))
    ]
    nats = 1.5**2 * loss(SpanBlock(*sides)).loss
    token_nats = -student.gather(1, rows.labels[:, None]).squeeze(1)
    for one, other in ((scores.token_nats, token_nats), (scores.spans["t"].loss, nats)):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=0, atol=1e-12)
    weights = torch.linspace(0.5, 1.5, len(rows.hidden), dtype=torch.float64)
    total = (weights * token_nats).sum() + (weights.flip(0) * nats).sum()
    assert_equal(ours, torch.autograd.grad(total, rows.inputs))


@pytest.mark.parametrize("transform", [LogitTransform(0.5), LogitTransform(-2.0, cap=5.0), LogitTransform(cap=0.7)])
def test_slope_is_the_derivative(transform: LogitTransform) -> None:
    logits = torch.linspace(-9, 9, 37, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(transform(logits).sum(), logits)
    torch.testing.assert_close(transform.slope(logits.detach()), expected, rtol=0, atol=1e-14)
    assert transform(logits.detach().bfloat16()).dtype == transform.slope(logits.bfloat16()).dtype == torch.float32


def test_every_architecture_with_such_a_head_is_tested_in_whole_steps() -> None:
    kinds = {name: "factor" if transform.cap is None else "soft cap" for name, transform in TRANSFORMED.items()}
    assert kinds == LOGITS
