"""Damaged shards of a cache, and texts that were changed, are refused when they are read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cached_teachers import LENGTH, data_of, module_of, set_up, split_teacher
from datasets import Dataset

from xtoken_pl.batch import RowArrays
from xtoken_pl.teachers.cache.reader import CachedSplit
from xtoken_pl.utilities.errors import UserError


def read_everything(root: Path, cache: Path) -> None:
    data = set_up(module_of(root, {"t": split_teacher(root, cache=str(cache))}), data_of(root))
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for _ in loader:
            pass


def opened(root: Path, cache: str | Path, split: str) -> tuple[Dataset, CachedSplit]:
    """The windows of a split, and what the cache stores of them."""
    module = module_of(root, {"t": split_teacher(root, cache=str(cache))})
    windows = set_up(module, data_of(root)).datasets[split]
    return windows, module.caches["t"].split(split, windows, LENGTH)


def test_a_flipped_bit_is_refused_naming_shard_and_window(root: Path, damaged: Path) -> None:
    read_everything(root, damaged)
    path = damaged / "train-000001.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"window \d+ of .*train-000001.safetensors is damaged, its checksum differs"):
        read_everything(root, damaged)


def test_no_flipped_bit_of_a_shard_goes_unnoticed(root: Path, damaged: Path) -> None:
    windows, reader = opened(root, damaged, "val")

    def read_all(reader: CachedSplit) -> list[RowArrays]:
        return [reader.read(index, windows[index]) for index in range(len(windows))]

    whole = read_all(reader)
    path = damaged / "val-000000.safetensors"
    content = path.read_bytes()
    places = np.linspace(0, len(content) - 1, 150).astype(int)
    places[1::2] = np.arange(len(places) // 2) * 8 + 3  # half of them in the header
    header_size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_size])
    by_window = [8 + header_size + header[name]["data_offsets"][0] for name in ("ends", "text_checksum", "checksum")]
    for place in [*places, *by_window]:
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"val-000000.safetensors (is damaged|cannot be read)"):
            read_all(pickle.loads(pickle.dumps(reader)))
    path.write_bytes(content)
    again = pickle.loads(pickle.dumps(reader)).read(1, windows[1])  # as in a worker of the loader
    assert all(np.array_equal(again[name], values) for name, values in whole[1].items())


def test_a_missing_or_truncated_shard_is_refused_at_set_up(root: Path, damaged: Path) -> None:
    path = damaged / "train-000000.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"train-000000.safetensors must have [\d,]+ bytes"):
        read_everything(root, damaged)
    path.unlink()
    with pytest.raises(UserError, match=r"train-000000.safetensors is missing"):
        read_everything(root, damaged)


def test_no_more_than_32_shards_stay_open_and_each_that_was_closed_opens_again(
    root: Path, stored: Callable[..., str]
) -> None:
    cache = Path(stored(shard_windows=1))
    windows, reader = opened(root, cache, "train")

    def open_shards() -> int:
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
        return len(mapped & {str(path) for path in cache.glob("train-*.safetensors")})

    assert len(windows) > 40
    first = reader.read(0, windows[0])
    for index in range(1, len(windows)):
        reader.read(index, windows[index])
    assert open_shards() == 32
    again = reader.read(0, windows[0])
    assert all(np.array_equal(again[name], values) for name, values in first.items())
    assert open_shards() == 32


def test_texts_that_were_changed_without_a_trace_are_refused_when_they_are_read(
    root: Path, stored: Callable[..., str]
) -> None:
    windows, reader = opened(root, stored(), "val")
    window = dict(windows[2])
    window["student_ids"] = window["student_ids"][::-1]
    with pytest.raises(ValueError, match=r"window 2 of .* was built from another text"):
        reader.read(2, window)
