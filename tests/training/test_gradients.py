"""Norm and clipping of gradients are torch's; where meshes differ, tests/models/test_split_models.py compares them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xtoken_pl.training.gradients import clip, gradients_of, total_norm


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.zeros(size)) for size in (3, 5, 2)]
    for weight in made[:2]:
        weight.grad = torch.randn(weight.shape, generator=generator)
    return made


def test_the_norm_is_that_of_all_gradients() -> None:
    gradients = gradients_of(weights())
    assert len(gradients) == 2
    torch.testing.assert_close(total_norm(gradients), torch.cat(gradients).norm())


@pytest.mark.parametrize("limit", [0.1, 100.0])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_as_torch_does(limit: float, algorithm: str) -> None:
    own, other = weights(), weights()
    clip(gradients_of(own), limit, algorithm)
    if algorithm == "norm":
        nn.utils.clip_grad_norm_(other, limit)
    else:
        nn.utils.clip_grad_value_(other, limit)
    for mine, theirs in zip(gradients_of(own), gradients_of(other), strict=True):
        torch.testing.assert_close(mine, theirs)
