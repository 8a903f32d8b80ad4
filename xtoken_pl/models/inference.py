"""The state in which a model in training is run on its own, without a gradient: to write texts, or to be evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from xtoken_pl.models.sharding import gathered


@contextmanager
def inference_state(model: nn.Module) -> Iterator[None]:
    """Gathers the weights and runs the model in evaluation mode and not compiled; restores every module's mode.

    Every process has to enter and leave the context.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        # Compiled layers would be recompiled for the lengths of every batch.
        with torch.compiler.set_stance("force_eager"), gathered(model):
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
