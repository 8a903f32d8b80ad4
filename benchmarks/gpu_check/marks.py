"""Times the parts of a step, without waiting for the device."""

from __future__ import annotations

from collections import defaultdict
from time import perf_counter

import torch


class Marks:
    """Marks the ends of the parts of a step; each part begins where the one before ends.

    On a GPU marks are CUDA events, so that no part is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, torch.cuda.Event | float]] = []

    def mark(self, name: str) -> None:
        """Marks the end of a part; the first mark is the begin of the step."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, perf_counter()))

    def take(self) -> dict[str, float]:
        """Returns the seconds by part since the first mark, and forgets the marks; waits for the device."""
        seconds: dict[str, float] = defaultdict(float)
        for (_, begin), (name, end) in zip(self._marks, self._marks[1:], strict=False):
            seconds[name] += _between(begin, end)
        self._marks.clear()
        return dict(seconds)


def _between(begin: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(begin, float):
        assert isinstance(end, float)
        return end - begin
    assert isinstance(end, torch.cuda.Event)
    end.synchronize()
    return begin.elapsed_time(end) / 1000
