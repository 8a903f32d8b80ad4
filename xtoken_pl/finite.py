"""Stops a run whose losses are no numbers, before it stores weights that are none either."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class FiniteLosses:
    """Watches the losses of every step without waiting for the device.

    The verdict on a step is read one step later, when it has long been there, or before a checkpoint is stored. Every
    process sees the same sums, so that all of them stop at the same step.
    """

    def __init__(self) -> None:
        self._step = 0
        self._names: list[str] = []
        self._verdict: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def note(self, step: int, ce: Tensor, kd: Mapping[str, Tensor]) -> None:
        """Takes the losses of a step: detached scalars, sums over all processes."""
        self._step, self._names = step, list(kd)
        verdict = torch.stack([ce, *kd.values()]).isfinite()
        on_gpu = verdict.is_cuda
        self._verdict = torch.empty(verdict.shape, dtype=torch.bool, pin_memory=on_gpu)
        self._verdict.copy_(verdict, non_blocking=True)
        if on_gpu:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def check(self) -> None:
        """Looks at the step that was noted last.

        Raises:
            FloatingPointError: If a loss was infinite or no number, with its teacher.
        """
        if self._verdict is None:
            return
        if self._copied is not None:
            self._copied.synchronize()
        ce_is_finite, *by_teacher = self._verdict.tolist()
        self._verdict = self._copied = None
        failed = [name for name, is_finite in zip(self._names, by_teacher, strict=True) if not is_finite]
        if ce_is_finite and not failed:
            return
        if not ce_is_finite:
            what = "the student's cross-entropy"
            why = "It has diverged (lower the learning rate, or clip gradients), or its dtype overflows (use bfloat16)"
        else:
            what = f"the loss of teacher {', '.join(map(repr, failed))}"
            why = "Its logits are infinite or no numbers: check its weights, and its dtype (float16 overflows)"
        raise FloatingPointError(
            f"losses must be finite, but {what} was not at step {self._step}. {why}. No checkpoint was stored since; "
            "go on from the one before with --ckpt_path last"
        )
