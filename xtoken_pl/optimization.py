"""AdamW with warm-up and cosine decay: the paper's recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup


@dataclass(frozen=True)
class OptimizerRecipe:
    """AdamW, a linear warm-up and a cosine to zero. Gradient clipping is the Trainer's.

    Attributes:
        learning_rate: Peak, > 0.
        weight_decay: On matrices; biases and normalization weights are not decayed.
        warmup_fraction: Share of all steps, in [0, 1).
        betas: Of Adam.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699: 5e-5, 0.1, 5%.
    """

    learning_rate: float = 5e-5
    weight_decay: float = 0.1
    warmup_fraction: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be >= 0, got {self.weight_decay}")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must be in [0, 1), got {self.warmup_fraction}")

    def build(self, parameters: Iterable[nn.Parameter], num_steps: float) -> tuple[AdamW, LambdaLR]:
        """The optimizer, and the scheduler that is stepped once per optimizer step.

        Raises:
            ValueError: If the number of steps is unknown.
        """
        if not math.isfinite(num_steps):
            raise ValueError("the cosine needs the number of steps; set trainer.max_steps or trainer.max_epochs")
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = AdamW(groups, lr=self.learning_rate, betas=self.betas)
        num_warmup = round(num_steps * self.warmup_fraction)
        return optimizer, get_cosine_schedule_with_warmup(optimizer, num_warmup, int(num_steps))

    def apply_to_restored(self, optimizer: torch.optim.Optimizer, scheduler: LambdaLR) -> None:
        """Puts this recipe's values back after a checkpoint has restored the ones of the run before."""
        scheduler.base_lrs = [self.learning_rate] * len(optimizer.param_groups)
        decays = (self.weight_decay, 0.0)
        factors = [schedule(scheduler.last_epoch) for schedule in scheduler.lr_lambdas]
        for group, decay, factor in zip(optimizer.param_groups, decays, factors, strict=True):
            group.update(
                initial_lr=self.learning_rate,
                lr=self.learning_rate * factor,
                weight_decay=decay,
                betas=self.betas,
            )
