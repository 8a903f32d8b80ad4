"""Builds a cache, shard by shard; a build that was cut off goes on with the first shard that is missing."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from xtoken_pl.batch import SpanArrays
from xtoken_pl.checkpoints.fingerprints import window_checksum
from xtoken_pl.teachers.cache.lock import LOCK_FILE
from xtoken_pl.teachers.cache.manifest import Identity, Manifest, ShardEntry
from xtoken_pl.teachers.cache.shards import write_shard
from xtoken_pl.teachers.cache.teacher_rows import TeacherRows
from xtoken_pl.utilities.errors import UserError

#: The folders of :func:`xtoken_pl.utilities.files.atomic_path`, which a killed write leaves behind.
_LEFTOVER = re.compile(r"\.(\w+-\d{6}\.safetensors|manifest\.json)\.\w{8}")


def check_folder(folder: Path) -> None:
    """Refuses a folder that holds something else than a cache.

    Raises:
        UserError: If it does, or is a file.
    """
    if not folder.exists() or Manifest.exists(folder):
        return
    if not folder.is_dir() or {path for path in folder.iterdir() if path.name != LOCK_FILE} - set(_leftovers(folder)):
        raise UserError(f"output must be a new or empty folder, or one that holds a cache; {folder} is neither")


def open_manifest(folder: Path, identity: Identity, *, overwrite: bool) -> Manifest:
    """The manifest to go on with; a new one is written before any shard.

    Args:
        folder: Checked, and locked.
        overwrite: Start again, and remove the shards of the cache that is there.

    Raises:
        UserError: If the folder holds a cache of other settings and not ``overwrite``.
    """
    if Manifest.exists(folder) and not overwrite:
        manifest = Manifest.load(folder)
        if differences := list(manifest.identity.differences(identity)):
            raise UserError(
                f"{folder} holds a cache of other settings: {'; '.join(differences)} (there: this run). Go on with the "
                "settings it was begun with, choose another output, or start again with overwrite"
            )
        _remove_leftovers(folder)
        return manifest
    _remove_leftovers(folder)
    # First, so that no shard of the old cache is ever beside the new manifest.
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


class CacheBuilder:
    """Writes the missing shards of a cache.

    Args:
        folder: Of the cache.
        manifest: Of :func:`open_manifest`.
        name: The teacher's, in the windows.
        windows: By split.
        batch_size: Windows that the teacher reads at a time.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, name: str, windows: Mapping[str, Dataset], batch_size: int
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._name = name
        self._windows = windows
        self._batch_size = batch_size

    def missing(self) -> dict[str, list[int]]:
        """The shards that are to be made, by split: not there, or not as they were written."""
        return {split: list(self._missing(split)) for split in self._windows}

    def _missing(self, split: str) -> Iterator[int]:
        finished = {entry.file: entry for entry in self.manifest.shards.get(split, [])}
        numbers = tqdm(
            range(self.manifest.num_shards(split)), desc=f"verify {split}", unit="shard", disable=not finished
        )
        for number in numbers:
            path = self._path(split, number)
            entry = finished.get(path.name)
            if entry is None:
                yield number
            elif not path.is_file() or _sha256(path) != entry.sha256:
                print(f"{path} is {'damaged' if path.is_file() else 'missing'}: it is made anew")
                yield number

    def build(self, missing: Mapping[str, Sequence[int]], teacher: TeacherRows) -> None:
        """Writes some shards, and the manifest after each."""
        for split, numbers in missing.items():
            total = sum(len(self._places(split, number)) for number in numbers)
            with tqdm(total=total, desc=f"{self._name}: {split}", unit="window", disable=not total) as bar:
                for number in numbers:
                    self._write(split, number, teacher, bar)

    def _write(self, split: str, number: int, teacher: TeacherRows, bar: tqdm[Any]) -> None:
        places = self._places(split, number)
        rows: list[SpanArrays] = []
        checksums: list[int] = []
        num_tokens = 0
        for start in range(0, len(places), self._batch_size):
            batch = places[start : start + self._batch_size]
            windows = [self._windows[split][place] for place in batch]
            of_windows, learned = teacher.of(windows, f"windows {batch[0]} to {batch[-1]} of {split}")
            rows += of_windows
            checksums += [window_checksum(window, self._name) for window in windows]
            num_tokens += learned
            bar.update(len(windows))
        path = self._path(split, number)
        write_shard(path, rows, checksums)
        num_spans = sum(len(window["log_span"]) for window in rows)
        entry = ShardEntry(path.name, len(places), num_spans, num_tokens, path.stat().st_size, _sha256(path))
        others = [other for other in self.manifest.shards.get(split, []) if other.file != entry.file]
        self.manifest.shards[split] = sorted([*others, entry], key=lambda shard: shard.file)
        self.manifest.save(self.folder)

    def _places(self, split: str, number: int) -> range:
        size = self.manifest.identity.shard_windows
        return range(number * size, min((number + 1) * size, len(self._windows[split])))

    def _path(self, split: str, number: int) -> Path:
        return self.folder / f"{split}-{number:06d}.safetensors"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
