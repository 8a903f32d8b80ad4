"""A module with a teacher of another tokenizer and one of the same, and the gradients of its step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xtoken_pl import (
    GOLD,
    ULD,
    BytePrefixKL,
    HybridKL,
    MultiTeacherDistillModule,
    ProjectionKL,
    SpanLoss,
    Student,
    Teacher,
    TokenKL,
)
from xtoken_pl.batch import DistillBatch

NAMES = ["other", "same"]
CROSS_LOSSES: list[SpanLoss] = [
    ProjectionKL(),
    ProjectionKL(merge="mean", divergence="reverse"),
    GOLD(),
    GOLD(merge="mean", divergence="jensen_shannon"),
    HybridKL(kl_weight=0.5),
    ULD(),
    BytePrefixKL(),
]


def make_module(
    folders: dict[str, str],
    loss: SpanLoss | None = None,
    *,
    memory: float = 2e-4,
    temperature: float = 1.0,
    learn: bool = False,
) -> MultiTeacherDistillModule:
    """``loss`` is that of the teacher with another tokenizer."""
    other = Teacher(
        model=folders["other"],
        loss=loss or ProjectionKL(),
        dtype="float64",
        alpha=0.7,
        temperature=temperature,
        learn_projection=learn,
    )
    same = Teacher(model=folders["same"], loss=TokenKL(), dtype="float64", alpha=0.3)
    teachers = {"other": other, "same": same}
    module = MultiTeacherDistillModule(
        Student(model=folders["student"], dtype="float64"),
        teachers,
        kd_weight=0.6,
        ce_weight=0.9,
        logits_memory=memory,
    )
    module.setup("fit")
    module.configure_model()
    return module


def gradients(module: MultiTeacherDistillModule, batch: DistillBatch) -> tuple[Tensor, dict[str, Tensor]]:
    module.zero_grad()
    step: Any = module.training_step(batch, 0)
    step["loss"].backward()
    grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return step["loss"].detach(), grads


def assert_same(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-10)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
