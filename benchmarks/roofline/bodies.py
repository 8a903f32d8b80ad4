"""Models without their heads: runs the passes of a step on tensors that only have shapes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.roofline.recorder import Operation, Recorder
from xtoken_pl.models.causal_lm import states_of_body
from xtoken_pl.plan.skeleton import Skeleton


def body_work(
    skeleton: Skeleton,
    batch_size: int,
    length: int,
    *,
    autocast: torch.dtype | None,
    trains: bool,
    activation_checkpointing: bool = False,
) -> tuple[Counter[Operation], Counter[Operation]]:
    """Records the forward pass of a model up to its hidden states, and the backward pass if it is trained.

    The backward pass includes what activation checkpointing computes again. The attention is one kernel.

    Args:
        skeleton: The model.
        batch_size, length: Windows, and tokens of each.
        autocast: Autocast dtype, or None without autocast.
        trains: Whether a backward pass follows.
        activation_checkpointing: Checkpoint the activations of every layer.
    """
    model: Any = skeleton.model
    model.train(trains).requires_grad_(False)
    for parameter in skeleton.trained:
        parameter.requires_grad_(trains)
    if activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    trained = skeleton.trained if trains else ()
    hooks = [parameter.register_post_accumulate_grad_hook(_drop) for parameter in trained]
    try:
        with skeleton.mode, torch.set_grad_enabled(trains), Recorder() as recorder:
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                input_ids = torch.zeros(batch_size, length, dtype=torch.long)
                states = states_of_body(model, input_ids, torch.ones_like(input_ids))
            forward = Counter(recorder.operations)
            recorder.operations.clear()
            if trains:
                torch.autograd.backward([states], [torch.empty_like(states)])
            return forward, Counter(recorder.operations)
    finally:
        for hook in hooks:
            hook.remove()
        if activation_checkpointing:
            model.activation_checkpointing_disable()
            model.disable_input_require_grads()  # left behind


def _drop(parameter: Tensor) -> None:
    parameter.grad = None
