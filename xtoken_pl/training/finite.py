"""Stops a run whose numbers are none, before it stores weights that are none either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xtoken_pl.utilities.errors import UserError

_TEACHER = "Its logits are infinite or no numbers: check its weights, and its dtype (float16 overflows)"
_STUDENT = "It has diverged (lower the learning rate, or clip gradients), or its dtype overflows (use bfloat16)"


@dataclass(frozen=True)
class _Noted:
    """What was seen of a step; ``verdict`` is on its way to the host until ``copied``."""

    step: int
    names: list[str]
    verdict: Tensor
    copied: torch.cuda.Event | None


class FiniteWatch:
    """Watches losses and gradients without waiting for the device.

    The verdict on a step is read in the next one, when it has long been there, or before a checkpoint is stored. Every
    process sees the same numbers, so that all of them stop at the same step.
    """

    def __init__(self) -> None:
        self._noted: list[_Noted] = []

    def note(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Takes detached scalars, the same on all processes, by name: ``teacher ...`` or ``student ...``."""
        verdict = torch.stack(list(values.values())).isfinite()
        copied = torch.cuda.Event() if verdict.is_cuda else None
        on_host = torch.empty(verdict.shape, dtype=torch.bool, pin_memory=copied is not None)
        on_host.copy_(verdict, non_blocking=True)
        if copied is not None:
            copied.record()
        self._noted.append(_Noted(step, list(values), on_host, copied))

    def check(self) -> None:
        """Looks at what was noted since the last time.

        Raises:
            UserError: If a number was infinite or none, with its name; the next time again.
        """
        for noted in self._noted:
            if noted.copied is not None:
                noted.copied.synchronize()
            for name, is_finite in zip(noted.names, noted.verdict.tolist(), strict=True):
                if not is_finite:
                    why = _TEACHER if name.startswith("teacher") else _STUDENT
                    raise UserError(
                        f"losses and gradients must be finite, but the {name} was not at step {noted.step}. "
                        f"{why}. No checkpoint was stored since; go on from the one before with --ckpt_path last"
                    )
        self._noted.clear()
