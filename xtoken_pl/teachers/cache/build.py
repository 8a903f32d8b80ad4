"""Builds a cache shard by shard; an interrupted build resumes at the first missing shard."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from xtoken_pl.batch import RowArrays
from xtoken_pl.checkpoints.fingerprints import window_checksum
from xtoken_pl.teachers.cache.lock import LOCK_FILE
from xtoken_pl.teachers.cache.manifest import Identity, Manifest, ShardEntry
from xtoken_pl.teachers.cache.shards import num_rows, write_shard
from xtoken_pl.teachers.cache.teacher_rows import TeacherRows
from xtoken_pl.utilities.errors import UserError

#: Temporary directories of :func:`xtoken_pl.utilities.files.atomic_path` left behind by a killed write.
_LEFTOVER = re.compile(r"\.([\w-]+-\d{6}\.safetensors|manifest\.json)\.\w{8}")


def check_folder(folder: Path) -> None:
    """Checks that a directory is new, empty or a cache.

    Raises:
        UserError: If it holds anything else, or is a file.
    """
    if not folder.exists() or Manifest.exists(folder):
        return
    if not folder.is_dir() or {path for path in folder.iterdir() if path.name != LOCK_FILE} - set(_leftovers(folder)):
        raise UserError(
            f"output must be a new or empty directory or an existing cache, but {folder} is neither; choose another "
            "output"
        )


def open_manifest(folder: Path, identity: Identity, *, overwrite: bool) -> Manifest:
    """Loads the manifest of the cache to resume, or writes a new one before any shard.

    Args:
        folder: Cache directory, checked and locked.
        identity: Settings of this run.
        overwrite: Remove an existing cache and start again.

    Raises:
        UserError: If the directory holds a cache with other settings and ``overwrite`` is False.
    """
    if Manifest.exists(folder) and not overwrite:
        manifest = Manifest.load(folder)
        if differences := list(manifest.identity.differences(identity)):
            raise UserError(
                f"{folder} holds a cache with other settings: {'; '.join(differences)}. Resume with the settings it "
                "was started with, choose another output, or start again with overwrite"
            )
        _remove_leftovers(folder)
        return manifest
    _remove_leftovers(folder)
    # Remove old shards first, so that none is ever next to the new manifest.
    for path in folder.glob(f"*-{'[0-9]' * 6}.safetensors"):
        path.unlink()
    manifest = Manifest(identity)
    manifest.save(folder)
    return manifest


def _leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name) and path.is_dir()]


def _remove_leftovers(folder: Path) -> None:
    for path in _leftovers(folder):
        shutil.rmtree(path)


@dataclass(frozen=True)
class CacheBuilder:
    """Writes the missing shards of a cache.

    Attributes:
        folder: Cache directory.
        manifest: Manifest from :func:`open_manifest`.
        name: Name of the teacher in the windows.
        windows: Windows by split.
        batch_size: Number of windows per forward pass.
    """

    folder: Path
    manifest: Manifest
    name: str
    windows: Mapping[str, Dataset]
    batch_size: int

    def missing(self) -> dict[str, list[int]]:
        """Returns the numbers of missing or damaged shards, by split."""
        return {split: list(self._missing(split)) for split in self.windows}

    def _missing(self, split: str) -> Iterator[int]:
        finished = {entry.file: entry.sha256 for entry in self.manifest.shards.get(split, [])}
        numbers = range(self.manifest.num_shards(split))
        for number in tqdm(numbers, desc=f"verify {split}", unit="shard", disable=not finished):
            path = self._path(split, number)
            if path.name in finished and path.is_file() and _sha256(path) == finished[path.name]:
                continue
            if path.name in finished:
                print(f"{path} is {'damaged' if path.is_file() else 'missing'}: it will be rebuilt")
            yield number

    def build(self, missing: Mapping[str, Sequence[int]], teacher: TeacherRows) -> None:
        """Writes the missing shards, and updates the manifest after each."""
        for split, numbers in missing.items():
            total = sum(len(self._places(split, number)) for number in numbers)
            with tqdm(total=total, desc=f"{self.name}: {split}", unit="window", disable=not total) as bar:
                for number in numbers:
                    self._write(split, number, teacher, bar)

    def _write(self, split: str, number: int, teacher: TeacherRows, bar: tqdm[Any]) -> None:
        places = self._places(split, number)
        rows: list[RowArrays] = []
        checksums: list[int] = []
        num_tokens = 0
        for start in range(0, len(places), self.batch_size):
            batch = places[start : start + self.batch_size]
            windows = [self.windows[split][place] for place in batch]
            encoded, learned = teacher.compute(windows, f"windows {batch[0]} to {batch[-1]} of {split}")
            rows += encoded
            checksums += [window_checksum(window, self.name) for window in windows]
            num_tokens += learned
            bar.update(len(windows))
        path = self._path(split, number)
        write_shard(path, rows, checksums)
        counts = len(places), sum(map(num_rows, rows)), num_tokens
        entry = ShardEntry(path.name, *counts, path.stat().st_size, _sha256(path))
        others = [other for other in self.manifest.shards.get(split, []) if other.file != entry.file]
        self.manifest.shards[split] = sorted([*others, entry], key=lambda shard: shard.file)
        self.manifest.save(self.folder)

    def _places(self, split: str, number: int) -> range:
        size = self.manifest.identity.shard_windows
        return range(number * size, min((number + 1) * size, len(self.windows[split])))

    def _path(self, split: str, number: int) -> Path:
        return self.folder / f"{split}-{number:06d}.safetensors"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
