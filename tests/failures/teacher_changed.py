"""The teacher has other weights when a run goes on."""

from __future__ import annotations

from pathlib import Path

from scenario import command, demonstrate, fail, saved, splitting_tokenizer, succeed, write_model


def scenario(folder: Path) -> None:
    succeed(folder, command("--trainer.max_steps", "2"))
    write_model(folder / "split", splitting_tokenizer(), seed=3)
    fail(folder, command("--ckpt_path", "last"), "teacher 'split' has another weights")
    assert saved(folder) == ["step=2.ckpt"]
    write_model(folder / "split", splitting_tokenizer(), seed=2)
    succeed(folder, command("--ckpt_path", "last"))
    assert saved(folder)[-1] == "step=8.ckpt"


if __name__ == "__main__":
    demonstrate(scenario)
