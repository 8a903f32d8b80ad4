"""Heads whose logits are multiplied, divided or soft-capped, as students and as teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, write_architecture
from fake_vocabularies import STUDENT, TEACHER, V_S, V_T, random_projection
from head_rows import ALL_KEPT, NOTHING_KEPT, Rows, assert_equal
from slow_step import slow_step
from small_models import packing_tokenizer, reversing_tokenizer, write_model
from two_teachers import NAMES, gradients, make_module

from xtoken_pl import ProjectionKL
from xtoken_pl.data import collate
from xtoken_pl.losses import SpanBlock
from xtoken_pl.losses.base import SideRows
from xtoken_pl.models.logit_transform import LogitTransform
from xtoken_pl.scoring.memory import LogitMemory

TRANSFORMED = {
    **{"gemma2": LogitTransform(cap=3.0), "gemma3_text": LogitTransform(cap=2.0), "nanochat": LogitTransform(cap=3.0)},
    "vaultgemma": LogitTransform(cap=3.0),
    **{"cohere": LogitTransform(0.0625), "cohere2": LogitTransform(0.0625), "hyperclovax": LogitTransform(0.125)},
    **{"granite": LogitTransform(1 / 8.0), "falcon_h1": LogitTransform(0.04)},
}


def write_folders(root: Path, architecture: str) -> dict[str, str]:
    """Student and the teacher of another tokenizer are of one architecture."""
    return {
        "student": write_architecture(root / "student", architecture, packing_tokenizer(), seed=1),
        "other": write_architecture(root / "other", architecture, reversing_tokenizer(), seed=2),
        "same": write_model(root / "same", packing_tokenizer(), seed=3),
    }


@pytest.mark.parametrize("memory", [1e-4, 1.0], ids=["nothing kept", "all kept"])
@pytest.mark.parametrize("architecture", TRANSFORMED)
def test_step_agrees_with_the_models_own_logits(
    tmp_path: Path, windows: list[dict[str, Any]], architecture: str, memory: float
) -> None:
    module = make_module(write_folders(tmp_path, architecture), memory=memory, temperature=2.5)
    transform = TRANSFORMED[architecture]
    assert module.loaded_teachers["other"].head.transform == transform
    windows = windows[1:4]  # the reference is slow
    loss, ours = gradients(module, collate(windows, NAMES))
    module.zero_grad()
    slow = slow_step(module, windows, 2.5)
    slow.backward()
    torch.testing.assert_close(loss, slow.detach(), rtol=0, atol=1e-10)
    # Normalization layers compute in single precision, whatever the model's.
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=0, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


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


def test_every_architecture_with_such_a_setting_is_tested() -> None:
    names = {"final_logit_softcapping", "output_logit_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier"}
    assert {name for name, settings in ARCHITECTURES.items() if names & settings.keys()} - {*TRANSFORMED} == {
        "granitemoe",
        "granitemoehybrid",
    }
