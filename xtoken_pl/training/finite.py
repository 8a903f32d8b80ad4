"""Stops a run when a loss or gradient becomes NaN or infinite, before a checkpoint is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xtoken_pl.utilities.errors import UserError

_TEACHER = "Its logits are infinite or NaN: check its weights, and its dtype (float16 overflows)"
_STUDENT = "It has diverged (lower the learning rate, or clip gradients), or its dtype overflows (use bfloat16)"


@dataclass(frozen=True)
class _Noted:
    """Whether the values of a step are finite; ``verdict`` is valid on the host once ``copied`` has occurred."""

    step: int
    names: list[str]
    verdict: Tensor
    copied: torch.cuda.Event | None


class FiniteWatch:
    """Watches losses and gradients without waiting for the device.

    The verdict on a step is read in the next step, or before a checkpoint is saved. Every process sees the same values,
    so that all of them stop at the same step.
    """

    def __init__(self) -> None:
        self._noted: list[_Noted] = []

    def note(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Records the values of a step.

        Args:
            step: Number of the step.
            values: Detached scalars, the same on all processes, by name: ``teacher ...`` or ``student ...``.
        """
        verdict = torch.stack(list(values.values())).isfinite()
        copied = torch.cuda.Event() if verdict.is_cuda else None
        on_host = torch.empty(verdict.shape, dtype=torch.bool, pin_memory=copied is not None)
        on_host.copy_(verdict, non_blocking=True)
        if copied is not None:
            copied.record()
        self._noted.append(_Noted(step, list(values), on_host, copied))

    def check(self) -> None:
        """Checks the values recorded since the last check.

        Raises:
            UserError: If a value was NaN or infinite, with its name; raised again by later checks.
        """
        for noted in self._noted:
            if noted.copied is not None:
                noted.copied.synchronize()
            for name, is_finite in zip(noted.names, noted.verdict.tolist(), strict=True):
                if not is_finite:
                    why = _TEACHER if name.startswith("teacher") else _STUDENT
                    raise UserError(
                        f"losses and gradients must be finite, but the {name} was not at step {noted.step}. "
                        f"{why}. No checkpoint was saved since; resume from the one before with --ckpt_path last"
                    )
        self._noted.clear()
