"""A training step against full logits and losses in loops."""

from __future__ import annotations

from typing import Any

import pytest
from slow_step import slow_step
from two_teachers import NAMES, assert_same, gradients, make_module

from xtoken_pl import GOLD, ULD, HybridKL, ProjectionKL, SpanLoss
from xtoken_pl.data import collate


@pytest.mark.parametrize(
    ("loss", "temperature"),
    [
        (ProjectionKL(), 1.0),
        pytest.param(ProjectionKL(divergence="reverse"), 2.5, marks=pytest.mark.slow),
        pytest.param(ProjectionKL(merge="mean"), 1.0, marks=pytest.mark.slow),
        pytest.param(GOLD(), 1.0, marks=pytest.mark.slow),
        pytest.param(HybridKL(divergence="jensen_shannon", uld_weight=0.5), 2.5, marks=pytest.mark.slow),
        pytest.param(ULD(merge="mean"), 1.0, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_step_agrees_with_full_logits_and_slow_losses(
    folders: dict[str, str], windows: list[dict[str, Any]], loss: SpanLoss, temperature: float
) -> None:
    module = make_module(folders, loss, temperature=temperature)
    windows = windows[1:5]  # the references are slow
    ours = gradients(module, collate(windows, NAMES))
    module.zero_grad()
    slow = slow_step(module, windows, temperature)
    slow.backward()
    theirs = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    assert_same(ours, (slow.detach(), theirs))
