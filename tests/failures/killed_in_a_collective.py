"""One of two processes is killed while the other waits for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from scenario import command, demonstrate, fail, saved, succeed


class DieBeforeTheGradientsAreSummed(pl.Callback):
    """Kills one process in its sixth step, before its backward pass."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 5 and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)


def scenario(folder: Path) -> None:
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "1"]
    killer = "killed_in_a_collective.DieBeforeTheGradientsAreSummed"
    for rank, goes_on in ((1, []), (0, ["--ckpt_path", "last"])):
        callback = ["--trainer.callbacks+", killer, "--trainer.callbacks.rank", str(rank)]
        fail(folder, command(*two, *callback, *goes_on), "by peer")
        assert saved(folder) == ["step=2.ckpt", "step=4.ckpt"]
    succeed(folder, command(*two, "--ckpt_path", "last"))
    assert saved(folder)[-1] == "step=8.ckpt"


if __name__ == "__main__":
    demonstrate(scenario)
