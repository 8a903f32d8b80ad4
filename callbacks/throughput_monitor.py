"""Logs the speed of training and how its time is spent."""

from __future__ import annotations

import resource
import sys
from contextlib import nullcontext
from functools import partial
from time import perf_counter
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from xtoken_pl.batch import STUDENT_IDS, DistillBatch
from xtoken_pl.callbacks.charts import Charts, Monitor, is_logged
from xtoken_pl.callbacks.clocks import PassClock, WaitingClock
from xtoken_pl.callbacks.shared import distill_module, step_kind, step_kinds, written_step
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.lightning_internals import is_accumulating
from xtoken_pl.utilities.processes import data_share
from xtoken_pl.utilities.tensors import filled

# Names beside those of the teachers, which have no spaces.
_WRITING, _ASKING = "the student's writing", "the teachers' servers"


class ThroughputMonitor(Monitor):
    """Logs the speed of training since the last log.

    - ``throughput/tokens_per_second``: student tokens without padding that were trained on, of all processes;
    - ``throughput/seconds_per_step``: duration of an optimizer step with all its micro-batches;
    - ``throughput/waiting_share``: share of the time that training waits for the data loader, whose workers ask the
      servers of teachers;
    - ``throughput/teacher_share/NAME``: share of the forward pass of a teacher that runs in this process, up to its
      head, which counts as part of the loss;
    - ``throughput/writing_share``, ``throughput/scoring_share``, ``throughput/learning_share``, only if the student
      writes: shares of writing, of all teachers' passes together and of asking their servers for the rows of
      rollouts, and of the rest; with the share of waiting they add up to 1;
    - ``throughput/peak_memory``: highest memory so far in GB, of the process that has most: memory allocated by torch
      on a GPU, otherwise the resident memory of the process.

    Times are wall-clock times between logs, without validations and evaluations and the time after them until the next
    batch is fetched. No step waits for the device: on a GPU, passes are timed with events that are read at the
    next log. Teacher passes outside training, such as in validation, do not count.

    Lightning's own ``ThroughputMonitor`` synchronizes with the GPU at every step, extrapolates from the first process,
    and measures neither waiting nor teachers.
    """

    def charts(self, module: MultiTeacherDistillModule) -> Charts:
        passes = [f"throughput/teacher_share/{name}" for name in module.loaded_teachers]
        parts = ("writing_share", "scoring_share", "learning_share")
        writes = "rollouts" in step_kinds(module)
        return {
            "Throughput": {
                "tokens per second": ["throughput/tokens_per_second"],
                "seconds per step": ["throughput/seconds_per_step"],
                "share of the time": [*passes, "throughput/waiting_share"],
                "writing, scoring and learning": [f"throughput/{part}" for part in parts] if writes else [],
                "peak memory, GB": ["throughput/peak_memory"],
            }
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._module = distill_module(pl_module, self)
        self._teachers, self._writes = self._module.loaded_teachers, "rollouts" in step_kinds(self._module)
        self._waiting = WaitingClock(trainer.profiler)  # type: ignore[attr-defined]
        trainer.profiler = self._waiting  # type: ignore[attr-defined]
        self._passes = PassClock(pl_module.device)
        self._begin(trainer, pl_module)

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step, self._since = trainer.global_step, perf_counter()
        self._waiting.waited = 0.0
        self._num_tokens = torch.zeros((), dtype=torch.long, device=pl_module.device)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._waiting.pause()

    def on_train_batch_start(self, *_: Any) -> None:
        for name, teacher in self._teachers.items():
            teacher.around = partial(self._passes.around, name)
        self._module.around_writing = partial(self._passes.around, _WRITING)
        self._module.around_asking = partial(self._passes.around, _ASKING)

    def on_before_backward(self, *_: Any) -> None:
        self._leave_models()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: DistillBatch, batch_idx: int
    ) -> None:
        if step_kind(outputs) == "train":
            self._num_tokens += batch.student.attention_mask.sum()
        elif not is_accumulating(trainer):  # the rollouts of the whole step, in place of the loader's batches
            self._num_tokens += sum(len(window[STUDENT_IDS]) for window in written_step(self._module).windows)
        if is_logged(trainer):
            pl_module.log_dict(self._measure(trainer, pl_module.device))
            self._begin(trainer, pl_module)

    def _measure(self, trainer: pl.Trainer, device: torch.device) -> dict[str, Tensor]:
        seconds = perf_counter() - self._since - self._waiting.take_pause()
        passes = self._passes.take()
        parts = [passes.get(name, 0.0) for name in (_WRITING, _ASKING, *self._teachers)]
        like = torch.empty((), device=device)
        here = filled([seconds, self._waiting.waited, *parts, peak_memory(device)], like)
        peak = cast(Tensor, trainer.strategy.reduce(here[-1], reduce_op="max"))
        counted = torch.cat((self._num_tokens[None].to(here.dtype), here[:-1]))
        sums = cast(Tensor, trainer.strategy.reduce(counted, reduce_op="sum"))
        num_tokens, total, waited, wrote, asked, *of_teachers = sums
        num_shares = data_share(trainer).number
        num_tokens = num_tokens * (num_shares / trainer.world_size)  # a tensor-parallel group reads the same ones
        mean = total / trainer.world_size
        shares = zip(self._teachers, of_teachers, strict=True)
        of_step = {"writing": wrote, "scoring": sum(of_teachers, asked)}
        of_step["learning"] = total - waited - of_step["writing"] - of_step["scoring"]
        return {
            "throughput/tokens_per_second": num_tokens / mean,
            "throughput/seconds_per_step": mean / (trainer.global_step - self._step),
            "throughput/waiting_share": waited / total,
            **{f"throughput/teacher_share/{name}": part / total for name, part in shares},
            **{f"throughput/{part}_share": own / total for part, own in of_step.items() if self._writes},
            "throughput/peak_memory": peak,
        }

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        profiler = trainer.profiler  # type: ignore[attr-defined]
        if isinstance(profiler, WaitingClock):
            trainer.profiler = profiler.profiler  # type: ignore[attr-defined]
            self._leave_models()

    def _leave_models(self) -> None:
        for teacher in self._teachers.values():
            teacher.around = nullcontext
        self._module.around_writing = self._module.around_asking = nullcontext


def peak_memory(device: torch.device) -> float:
    """Peak memory in GB: allocated by torch on a GPU, otherwise resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
