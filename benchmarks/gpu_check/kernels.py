"""The slowest kernels of a step, and what in it waits for the device."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import torch
from asks_the_device import AsksTheDevice
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_check.marks import Marks
from benchmarks.gpu_check.models import Pair, SharingModule, batch_for, optimizer_of, train
from benchmarks.gpu_check.setting import Setting
from benchmarks.measure import Figure
from xtoken_pl import BytePrefixKL, HybridKL, ProjectionKL, SpanLoss
from xtoken_pl.scoring.memory import LogitMemory

_LOSSES: dict[str, type[SpanLoss]] = {"P-KL": ProjectionKL, "H-KL": HybridKL, "byte-prefix KL": BytePrefixKL}
#: GB of logits: the default on a GPU, all blocks kept, and every block but the last computed again.
_MEMORIES = (2.0, 8.0, 0.5)
_MINIATURE = 1e-3
_NUM_KERNELS, _LONGEST_NAME = 5, 100


class _Watch(Protocol):
    """Places that waited for the device, in order; they are added while a step runs."""

    asked: list[str]


def figures(setting: Setting) -> Iterator[Figure]:
    """For every loss and memory budget: synchronizations; then the five slowest kernels."""
    marks = Marks(setting.device)
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair.build(setting, Path(folder))
        steps = {name: _Step(setting, pair, kind(), marks) for name, kind in _LOSSES.items()}
        optimizer = optimizer_of(next(iter(steps.values())).module)  # all modules have one student
        for memory, (name, step) in product(_MEMORIES, steps.items()):
            step.set_memory(memory)
            step.train(optimizer)  # what libraries set up at their first use
            yield from _synchronizations(step, optimizer, f"CE + {name}, logits_memory {memory:g}")
            step.set_memory(memory)  # frees what the step has kept, before that of the next loss is needed
        for memory, (name, step) in product(_MEMORIES, steps.items()):
            if memory == _MEMORIES[0] or name == next(iter(steps)):  # the many small kernels take long to count
                step.set_memory(memory)
                yield from _slowest(step, optimizer, f"CE + {name}, logits_memory {memory:g}")
                step.set_memory(memory)


class _Step:
    """A module with its batch."""

    def __init__(self, setting: Setting, pair: Pair, loss: SpanLoss, marks: Marks) -> None:
        self.setting, self.marks = setting, marks
        self.module = SharingModule(pair, loss, marks)
        self.batch = batch_for(self.module, pair)

    def set_memory(self, memory: float) -> None:
        """Sets the memory for logits, in GB."""
        self.module.logit_memory = LogitMemory(memory * 1e9 * (1.0 if self.setting.is_full else _MINIATURE))

    def train(self, optimizer: Optimizer) -> None:
        """Takes a step."""
        train(self.module, self.batch, optimizer, self.marks)
        self.marks.take()

    def forward_and_backward(self) -> None:
        """Takes a step without the optimizer."""
        with torch.autocast(self.setting.device.type, torch.bfloat16):
            output: Any = self.module.training_step(self.batch, 0)
        output["loss"].backward()
        self.module.zero_grad()


def _synchronizations(step: _Step, optimizer: Optimizer, where: str) -> Iterator[Figure]:
    """Counts them in a step, those in the models' passes apart: transformers' own code is not ours."""
    of_models: list[str] = []
    with _watching(step.setting) as watch:
        torch.zeros(1, device=step.setting.device).item()
        num_seen = len(watch.asked)
        watch.asked.clear()

        @contextmanager
        def around_models() -> Iterator[None]:
            before = len(watch.asked)
            yield
            of_models.extend(watch.asked[before:])
            del watch.asked[before:]

        step.module.around_models = around_models
        if step.setting.on_gpu:
            train(step.module, step.batch, optimizer, step.marks)
        else:  # AdamW reads its step counters, which are on the CPU in any case
            step.forward_and_backward()
        step.module.around_models = nullcontext
        asked = list(watch.asked)
    step.marks.take()
    yield Figure(f"{where}: synchronizations seen where a number is read", num_seen, "", 1, at_least=True)
    yield Figure(f"{where}: synchronizations in a step", len(asked), "", 0, note=_places(asked))
    yield Figure(f"{where}: synchronizations in the models' passes", len(of_models), "", note=_places(of_models))


def _places(asked: list[str]) -> str:
    return ", ".join(f"{asked.count(place)} x {place}" for place in dict.fromkeys(asked))


@contextmanager
def _watching(setting: Setting) -> Iterator[_Watch]:
    """Notes what waits for the device: CUDA's own warnings on a GPU, the operations that would on a CPU."""
    if not setting.on_gpu:
        with AsksTheDevice() as watch:
            yield watch
        return
    noted = _Warnings()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = noted  # type: ignore[assignment]  # it takes any further arguments
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield noted
        finally:
            torch.cuda.set_sync_debug_mode("default")


class _Warnings:
    """Takes the place of ``warnings.showwarning``, and notes where a synchronization was warned of."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        # Not "synchronizing" alone: turning the mode on is itself warned of, as one that does not see all of them.
        if "called a synchronizing" in str(message):
            self.asked.append(f"{'/'.join(Path(filename).parts[-2:])}:{lineno}")


def _slowest(step: _Step, optimizer: Optimizer, where: str) -> Iterator[Figure]:
    """The kernels that take most of a step; on a CPU the operations, without those that they call."""
    on_gpu = step.setting.on_gpu
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        step.train(optimizer)
    events = [event for event in profiler.key_averages() if not getattr(event, "is_user_annotation", False)]
    if on_gpu:
        kernels = [(event.self_device_time_total, event) for event in events if event.device_type.name == "CUDA"]
    else:
        kernels = [(event.self_cpu_time_total, event) for event in events]
    total = sum(time for time, _ in kernels)
    kernels.sort(key=lambda kernel: -kernel[0])
    yield Figure(f"{where}: kernels in a step", sum(event.count for _, event in kernels), "", 1, at_least=True)
    for rank, (time, event) in enumerate(kernels[:_NUM_KERNELS], 1):
        note = f"{event.count} calls, {100 * time / total:.1f}% of the time of all kernels"
        yield Figure(f"{where}: slowest kernel {rank}: {event.key[:_LONGEST_NAME]}", time / 1000, "ms", note=note)
