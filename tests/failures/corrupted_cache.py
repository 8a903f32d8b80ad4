"""Bits of a teacher's cache have flipped, one at least of every window."""

from __future__ import annotations

from pathlib import Path

from scenario import command, demonstrate, fail, saved, succeed


def scenario(folder: Path) -> None:
    succeed(folder, command("--teacher", "split", "--output", "cache", verb="cache"))
    cached = ["--model.teachers.split.cache", "cache"]
    succeed(folder, command(*cached, "--trainer.max_steps", "2"))
    before = saved(folder)
    shard = sorted(Path(folder / "cache").rglob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    for place in range(len(content) // 2, len(content), 100):  # whichever window the run reads next
        content[place] ^= 1
    shard.write_bytes(content)
    fail(folder, command(*cached, "--ckpt_path", "last"), f"{shard.name} is damaged")
    assert saved(folder) == before == ["step=2.ckpt"]


if __name__ == "__main__":
    demonstrate(scenario)
