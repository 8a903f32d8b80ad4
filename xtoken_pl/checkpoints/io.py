"""Writes checkpoints whole or not at all, and refuses to read a damaged one."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from xtoken_pl.utilities.errors import UserError

#: The files of a distributed checkpoint that are written last, in that order.
_WRITTEN_LAST = (".metadata", "meta.pt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoint files atomically, so that a killed process never leaves a truncated one.

    A checkpoint is written to ``.NAME.part`` beside its target, flushed to the disk, and moved over the target in one
    step: at any moment the target is the previous checkpoint or the new one. A ``.part`` file that a killed process has
    left is overwritten by the next write to the same target. Remote targets (``s3://...``) are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Raises:
            UserError: If it could not be written, for example because the disk is full; the file at ``path`` is
                unchanged.
        """
        if storage_options is not None or is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except Exception as error:
            part.unlink(missing_ok=True)
            # torch replaces the operating system's error by one of its own.
            reason = error if isinstance(error, OSError) else error.__context__ or error
            raise UserError(
                f"the checkpoint {target} could not be written ({reason}); "
                f"{'the previous one there is unchanged' if target.exists() else 'there was none before'}. Free some "
                "space, or set ModelCheckpoint.dirpath to another disk, and resume with `--ckpt_path last`"
            ) from error
        _sync_folder(target.parent)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Reads a checkpoint.

        Raises:
            UserError: If it is damaged; names the newest undamaged one beside it.
        """
        check_whole(path)
        return super().load_checkpoint(path, *arguments, **options)


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint on disk that training can resume from, unless it is damaged.

    Attributes:
        path: A file, or the directory of a distributed checkpoint.
        written: Time of the last change, seconds since the epoch.
        step: Global step; -1 if the checkpoint is damaged.
    """

    path: Path
    written: float
    step: int

    @property
    def is_damaged(self) -> bool:
        """Whether the checkpoint could not be read."""
        return self.step < 0


def stored_checkpoints(folder: Path) -> list[StoredCheckpoint]:
    """Lists the checkpoints in a directory that training can resume from, and damaged ones, newest first.

    The newest is the one that was written last: a directory may hold those of an earlier, longer run.
    """
    # A metric's name in the file name may contain slashes, which create directories.
    paths = [path for path in sorted(folder.rglob("*.ckpt")) if path.exists()]
    found = [_read(path) for path in paths if not any(parent in path.parents for parent in paths)]
    return sorted(filter(None, found), key=lambda stored: (stored.written, stored.step), reverse=True)


def way_out(others: Iterable[StoredCheckpoint]) -> str:
    """Advice to resume from the first of ``others`` that is not damaged, or to start a new run."""
    for stored in others:
        if not stored.is_damaged and damage(stored.path) is None:
            return f"resume from the newest whole one beside it, of step {stored.step}: --ckpt_path '{stored.path}'"
    return "there is no whole one beside it; start a new run"


def check_whole(path: str | Path) -> None:
    """Refuses a damaged checkpoint; does nothing if the path does not exist, or is remote.

    Raises:
        UserError: With the kind of damage, and the newest undamaged checkpoint of the same directory.
    """
    if is_remote(path) or not Path(path).exists() or (reason := damage(Path(path))) is None:
        return
    others = [stored for stored in stored_checkpoints(Path(path).parent) if stored.path != Path(path)]
    raise UserError(f"a checkpoint must be whole, but {str(path)!r} is not: {reason}; {way_out(others)}")


def damage(path: Path) -> str | None:
    """Describes the damage of a checkpoint; returns None if there is none.

    A file must be a zip archive, as torch.save writes it, with correct checksums (torch.load does not verify them). A
    distributed checkpoint must hold the files that are written last.
    """
    if path.is_dir():
        missing = [name for name in _WRITTEN_LAST if not (path / name).is_file()]
        return f"its {' and '.join(missing)} is missing, which is written last" if missing else None
    stat = path.stat()
    return _file_damage(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _file_damage(path: Path, size: int, _changed: int) -> str | None:
    # Every file is read once; a different size or time means that it was rewritten.
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        return f"it has {size:,} bytes that are not a complete zip archive ({error})"
    return None if record is None else f"the checksum of its record {record!r} is wrong"


def _read(path: Path) -> StoredCheckpoint | None:
    """Reads the step of a checkpoint; returns None if it holds weights alone."""
    try:
        content = without_tensors(path)
        step = int(content["global_step"])
        if "lr_schedulers" not in content:
            return None
    except Exception:  # a damaged pickle raises nearly anything
        step = -1
    return StoredCheckpoint(path, path.stat().st_mtime, step)


def without_tensors(path: Path) -> dict[str, Any]:
    """Reads a checkpoint with tensors that have no values; a distributed one without the models."""
    if path.is_dir():
        return torch.load(path / _WRITTEN_LAST[-1], map_location="meta", weights_only=True)
    return torch.load(path, map_location="meta", mmap=True, weights_only=True)


def is_remote(path: str | Path) -> bool:
    """Whether a path is a URL (``s3://...``)."""
    return "://" in str(path)


def _sync_folder(folder: Path) -> None:
    """Flushes the names of a directory's files to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
