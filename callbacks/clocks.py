"""Clocks for the time that training waits for data and that teachers run, without waiting for the device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import Profiler

_FETCH = "[_TrainingEpochLoop].train_dataloader_next"


class WaitingClock(Profiler):
    """Wraps the trainer's profiler, which is notified when a batch is fetched, and forwards all calls to it.

    Args:
        profiler: The profiler to wrap.

    Attributes:
        waited: Seconds that training has waited for batches.
    """

    def __init__(self, profiler: Profiler) -> None:
        super().__init__()
        self.profiler = profiler
        self.waited = self._paused = 0.0
        self._asked: float | None = None
        self._pause_began: float | None = None

    def pause(self) -> None:
        """Excludes the time from now until the next batch is fetched."""
        if self._pause_began is None:
            self._pause_began = perf_counter()

    def take_pause(self) -> float:
        """Returns the seconds paused since the last call, including a pause still in progress."""
        if self._pause_began is not None:
            now = perf_counter()
            self._paused += now - self._pause_began
            self._pause_began = now
        taken, self._paused = self._paused, 0.0
        return taken

    def start(self, action_name: str) -> None:
        if action_name == _FETCH:
            self._asked = perf_counter()
            if self._pause_began is not None:
                self._paused += self._asked - self._pause_began
                self._pause_began = None
        self.profiler.start(action_name)

    def stop(self, action_name: str) -> None:
        self.profiler.stop(action_name)
        if action_name == _FETCH and self._asked is not None:
            self.waited += perf_counter() - self._asked
            self._asked = None


def pause_clock(trainer: pl.Trainer) -> None:
    """Pauses the clock, for callbacks whose work between two batches is not training."""
    profiler = trainer.profiler  # type: ignore[attr-defined]
    if isinstance(profiler, WaitingClock):
        profiler.pause()


class PassClock:
    """Adds up the duration of passes by name. On a GPU it uses CUDA events, so that no pass is waited for."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        """Times the body of the ``with`` statement."""
        if self._on_gpu:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            began = perf_counter()
            yield
            self._seconds[name] += perf_counter() - began

    def take(self) -> dict[str, float]:
        """Returns the seconds by name since the last call; waits for the last pass to finish."""
        for name, start, end in self._events:
            end.synchronize()
            self._seconds[name] += start.elapsed_time(end) / 1000
        taken = dict(self._seconds)
        self._seconds.clear()
        self._events.clear()
        return taken
