"""A compressed file of texts ends in the middle."""

from __future__ import annotations

import gzip
from pathlib import Path

from scenario import command, demonstrate, fail, saved, succeed


def scenario(folder: Path) -> None:
    succeed(folder, command("--trainer.max_steps", "2"))
    before = saved(folder)
    whole = gzip.compress((folder / "texts/1.jsonl").read_bytes())
    (folder / "texts/1.jsonl").unlink()
    (folder / "texts/1.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "texts/0.jsonl.gz").write_bytes(gzip.compress((folder / "texts/0.jsonl").read_bytes()))
    (folder / "texts/0.jsonl").unlink()
    fail(folder, command("--data.train.path", "texts", "--ckpt_path", "last"), "could not be read")
    assert saved(folder) == before == ["step=2.ckpt"]


if __name__ == "__main__":
    demonstrate(scenario)
