"""A callback that ends its process as `kill -9` does; runs that are started by tests name it in their configuration."""

from __future__ import annotations

import os
import signal
from typing import IO, Any

import lightning.pytorch as pl
import torch

#: Where a step can end. `write`: within the checkpoint that is saved behind it.
MOMENTS = ("batch_start", "optimizer_step", "batch_end", "validation", "write")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _DyingFile:
    """Takes some bytes, and then no more."""

    def __init__(self, file: IO[bytes], num_bytes: int) -> None:
        self.file, self.num_bytes = file, num_bytes

    def write(self, content: Any) -> int:
        self.num_bytes -= len(content)
        if self.num_bytes < 0:
            self.file.flush()
            die()
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


class SuddenDeath(pl.Callback):
    """Ends the process of ``rank`` at one of :data:`MOMENTS` of the ``step``-th batch, counted from 1."""

    def __init__(self, moment: str, step: int, rank: int = 0) -> None:
        assert moment in MOMENTS
        self.moment, self.step, self.rank = moment, step, rank

    def _meet(self, trainer: Any, moment: str) -> None:
        here = (moment, trainer.fit_loop.total_batch_idx + 1, trainer.global_rank)
        if here == (self.moment, self.step, self.rank) and not trainer.sanity_checking:
            die()

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self._meet(trainer, "batch_start")

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        self._meet(trainer, "optimizer_step")

    def on_validation_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        self._meet(trainer, "validation")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self._meet(trainer, "batch_end")
        if self.moment == "write" and trainer.fit_loop.total_batch_idx + 1 == self.step:
            save = torch.save
            torch.save = lambda content, file: save(content, _DyingFile(file, 100_000))
