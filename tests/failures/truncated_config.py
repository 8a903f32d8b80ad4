"""The configuration was cut off while it was copied."""

from __future__ import annotations

from pathlib import Path

from scenario import CONFIG, command, demonstrate, fail, saved, succeed


def scenario(folder: Path) -> None:
    succeed(folder, command("--trainer.max_steps", "2"))
    (folder / "run.yaml").write_text(CONFIG[: CONFIG.index("ProjectionKL")])  # inside a mapping
    fail(folder, command("--ckpt_path", "last"), "run.yaml")
    assert saved(folder) == ["step=2.ckpt"]


if __name__ == "__main__":
    demonstrate(scenario)
