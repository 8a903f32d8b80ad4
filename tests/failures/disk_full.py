"""The disk is full when a checkpoint is written: a small tmpfs lies where they go."""

from __future__ import annotations

import shlex
from pathlib import Path

from scenario import command, demonstrate, fail, run


def scenario(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    go_on = command("--ckpt_path", "checkpoints/step=4.ckpt", "--trainer.max_steps", "5")
    # Room for two checkpoints, not for three. The mount belongs to the shell, and goes with it.
    shell = (
        "mount -t tmpfs -o size=5m tmpfs checkpoints && "
        f"{shlex.join(command())}; code=$?; ls -a checkpoints > left.txt; "
        f"rm checkpoints/step=2.ckpt; {shlex.join(go_on)} && touch went_on; exit $code"
    )
    wrapped = ["unshare", "--map-root-user", "--mount", "sh", "-c", shell]
    fail(folder, wrapped, "could not be written", "No space left on device")
    left = (folder / "left.txt").read_text().split()
    assert sorted(left) == [".", "..", "step=2.ckpt", "step=4.ckpt"], left
    assert (folder / "went_on").exists(), run(folder, wrapped).stderr[-2000:]


if __name__ == "__main__":
    demonstrate(scenario)
