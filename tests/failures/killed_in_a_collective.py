"""One of two processes is killed while the other waits for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from scenario import command, demonstrate, fail, saved, succeed


class DieBeforeTheGradientsAreSummed(pl.Callback):
    """Kills the second process in its sixth step, before its backward pass."""

    def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 5 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def scenario(folder: Path) -> None:
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "1"]
    killer = ["--trainer.callbacks+", "killed_in_a_collective.DieBeforeTheGradientsAreSummed"]
    fail(folder, command(*two, *killer), "by peer")
    assert saved(folder) == ["step=2.ckpt", "step=4.ckpt"]
    succeed(folder, command(*two, "--ckpt_path", "last"))
    assert saved(folder)[-1] == "step=8.ckpt"


if __name__ == "__main__":
    demonstrate(scenario)
