"""A whole step of the quickstart against its two models alone: ``python -m benchmarks.quickstart_step``."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.profilers import SimpleProfiler

from benchmarks.measure import Figure, run
from benchmarks.quickstart import fit
from xtoken_pl.cli.prepare import prepare

_STEPS, _WARM_UP = 13, 3


class TwoModels(pl.Callback):
    """After every step: the teacher's forward pass, and a step of a copy of the student on cross-entropy alone."""

    def __init__(self) -> None:
        self.whole: list[float] = []
        self.alone: list[float] = []
        self._start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copies the student."""
        module: Any = pl_module
        self._student = copy.deepcopy(module.student)
        self._optimizer = torch.optim.AdamW(self._student.parameters(), lr=1e-3)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The step begins."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is over, its logging included."""
        middle = time.perf_counter()
        self._two_models(pl_module, batch)
        self.whole.append(middle - self._start)
        self.alone.append(time.perf_counter() - middle)

    def _two_models(self, module: Any, batch: Any) -> None:
        ((name, loaded),) = module.loaded_teachers.items()
        tokens = batch.teachers[name].tokens
        with torch.no_grad():
            loaded.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False)
        tokens = batch.student
        self._optimizer.zero_grad()
        logits = self._student(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
        F.cross_entropy(logits.flatten(0, 1)[tokens.rows], tokens.labels).backward()
        torch.nn.utils.clip_grad_norm_(self._student.parameters(), 1.0)
        self._optimizer.step()


def figures() -> Iterator[Figure]:
    """Two runs: one for the waiting of an undisturbed loop, one where both sides of the ratio take turns."""
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        profiler = SimpleProfiler(dirpath=folder)
        _fit(folder, profiler=profiler)
        times = profiler.recorded_durations
        waiting = sum(times["[_TrainingEpochLoop].train_dataloader_next"][_WARM_UP:])
        working = sum(times["run_training_batch"][_WARM_UP:])
        yield Figure("quickstart: waiting for the data loader", 100 * waiting / (waiting + working), "% of a step", 2)
        callback = TwoModels()
        _fit(folder, callback=callback)
    whole, alone = callback.whole[_WARM_UP:], callback.alone[_WARM_UP:]
    ratio = statistics.median(a / b for a, b in zip(whole, alone, strict=True))
    note = f"{statistics.median(whole):.2f} s / {statistics.median(alone):.2f} s"
    yield Figure("quickstart: step against teacher forward + student step with CE alone", ratio, "x", 1.15, note=note)


def _fit(folder: str, *, profiler: SimpleProfiler | None = None, callback: pl.Callback | None = None) -> None:
    callbacks = ["DynamicLossScaling", "TeacherMonitor"]
    fit(["quickstart"], _STEPS, folder, callbacks=callbacks, callback=callback, profiler=profiler)


if __name__ == "__main__":
    run(figures)
