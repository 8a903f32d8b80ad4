"""AdamW with warm-up and cosine decay: the paper's recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from xtoken_pl.utilities.checks import check_not_negative
from xtoken_pl.utilities.errors import UserError


@dataclass(frozen=True)
class OptimizerRecipe:
    """AdamW with a linear warm-up and a cosine decay to zero. The Trainer clips gradients.

    Attributes:
        learning_rate: Peak learning rate, > 0.
        weight_decay: Weight decay of matrices, >= 0; biases, normalization weights and learned projections have none.
        warmup_fraction: Share of the warm-up in all steps, in [0, 1).
        betas: Coefficients of Adam, in [0, 1).
        projection_learning_rate: Peak learning rate of learned projections, > 0, with the same warm-up and decay.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699: 5e-5, 0.1, 5%; 1e-2 for W.
    """

    learning_rate: float = 5e-5
    weight_decay: float = 0.1
    warmup_fraction: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    projection_learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        for name in ("learning_rate", "projection_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(
                    f"{name} must be > 0 and finite, got {getattr(self, name)}; the default is "
                    f"{getattr(type(self), name)}"
                )
        check_not_negative("weight_decay", self.weight_decay, "0 disables it")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas must be in [0, 1), got {self.betas}; the default is {type(self).betas}")
        if not 0 <= self.warmup_fraction < 1:
            raise UserError(f"warmup_fraction must be in [0, 1), got {self.warmup_fraction}")

    def build(
        self, parameters: Iterable[nn.Parameter], num_steps: float, projections: Iterable[nn.Parameter] = ()
    ) -> tuple[AdamW, LambdaLR]:
        """Builds the optimizer and the scheduler, which is stepped once per optimizer step.

        Args:
            parameters: Parameters of the module; frozen ones are left out.
            num_steps: Number of optimizer steps of the whole run.
            projections: The ``parameters`` that are weights of a learned W.

        Raises:
            UserError: If the number of steps is unknown.
        """
        if not math.isfinite(num_steps):
            raise UserError("the cosine needs the number of steps; set trainer.max_steps or trainer.max_epochs")
        of_projections = list(projections)
        known = {id(parameter) for parameter in of_projections}
        trained = [parameter for parameter in parameters if parameter.requires_grad and id(parameter) not in known]
        members = [[p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2], of_projections]
        if half := sum(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in trained):
            rank_zero_warn(
                f"{half} of the {len(trained)} trained weights are in half precision: steps that are smaller than half "
                "the distance to the next number are lost, and at usual learning rates most are; set "
                "model.student.dtype to float32, and trainer.precision to bf16-mixed to compute in bfloat16"
            )
        # A distributed checkpoint would lose the options of an empty group.
        groups = [{"params": chosen, **self._options(chosen[0], known)} for chosen in members if chosen]
        optimizer = AdamW(groups, lr=self.learning_rate, betas=self.betas)
        num_warmup = round(num_steps * self.warmup_fraction)
        return optimizer, LambdaLR(optimizer, partial(_rate_factor, num_warmup=num_warmup, num_steps=int(num_steps)))

    def apply_to_restored(
        self, optimizer: torch.optim.Optimizer, scheduler: LambdaLR, projections: Iterable[nn.Parameter] = ()
    ) -> None:
        """Applies this recipe's values after a checkpoint has restored those of the previous run.

        Args:
            optimizer, scheduler: Result of :meth:`build`.
            projections: Argument of :meth:`build`.
        """
        known = {id(parameter) for parameter in projections}
        for place, group in enumerate(optimizer.param_groups):
            group |= {"betas": self.betas, **self._options(group["params"][0], known)}
            scheduler.base_lrs[place] = group["initial_lr"] = group["lr"]
            group["lr"] *= scheduler.lr_lambdas[place](scheduler.last_epoch)

    def _options(self, parameter: nn.Parameter, projections: set[int]) -> dict[str, float]:
        """Peak learning rate and weight decay of the group of ``parameter``."""
        if id(parameter) in projections:
            return {"lr": self.projection_learning_rate, "weight_decay": 0.0}
        return {"lr": self.learning_rate, "weight_decay": self.weight_decay if parameter.ndim >= 2 else 0.0}


def _rate_factor(step: int, *, num_warmup: int, num_steps: int) -> float:
    """Factor on the peak learning rate: linear from 0 to 1 over the warm-up, then a half cosine to 0."""
    if step < num_warmup:
        return step / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
