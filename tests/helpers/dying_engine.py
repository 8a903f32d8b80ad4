"""An engine that ends its process as `kill -9` does; runs that are started by tests name it in their configuration."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from sudden_death import die

from xtoken_pl.rollouts import Request, Rollout, TransformersEngine


class DyingEngine(TransformersEngine):
    """Dies within the ``num_passes``-th forward pass of writing in an optimizer step, counted from 0."""

    def __init__(self, step: int, num_passes: int = 4) -> None:
        super().__init__()
        self.step, self.num_passes = step, num_passes

    def write(self, requests: Sequence[Request], sampling: Any, student: Any, vocabulary: Any) -> list[Rollout]:
        if requests and requests[0].seed[1] == self.step:
            passes = count(1)
            student.register_forward_pre_hook(lambda *_: die() if next(passes) == self.num_passes else None)
        return super().write(requests, sampling, student, vocabulary)
