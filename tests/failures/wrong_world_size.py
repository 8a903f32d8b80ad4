"""A run goes on with more processes, whose batches would be other ones."""

from __future__ import annotations

from pathlib import Path

from scenario import command, demonstrate, fail, saved, succeed


def scenario(folder: Path) -> None:
    succeed(folder, command("--trainer.max_steps", "2"))
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    fail(folder, command(*two, "--ckpt_path", "last"), "batch")
    assert saved(folder) == ["step=2.ckpt"]
    succeed(folder, command(*two, "--data.batch_size", "1", "--ckpt_path", "last"))  # the way out
    assert saved(folder)[-1] == "step=8.ckpt"


if __name__ == "__main__":
    demonstrate(scenario)
