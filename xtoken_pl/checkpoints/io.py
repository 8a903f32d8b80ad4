"""Checkpoints are written whole or not at all, and a damaged one is refused when it is read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from xtoken_pl.utilities.errors import UserError

#: Files of a distributed checkpoint in the order in which they are written, the last ones of all.
_WRITTEN_LAST = (".metadata", "meta.pt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, safe from sudden death.

    A checkpoint is streamed into ``.NAME.part`` beside its target, forced to the disk, and moved over the target in one
    step: at every moment the target is the earlier checkpoint or the new one. What a killed process leaves is
    overwritten by the next write to the same target. Remote targets (``s3://...``) are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint.

        Raises:
            UserError: If it could not be written, because the disk is full for example; what was at ``path`` is as it
                was.
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
            # torch hides the system's reason behind one of its own.
            reason = error if isinstance(error, OSError) else error.__context__ or error
            raise UserError(
                f"the checkpoint {target} could not be written ({reason}); "
                f"{'the one that was there is as it was' if target.exists() else 'nothing was there before'}. "
                "Make room, or set ModelCheckpoint.dirpath to another disk, and go on from the last one with "
                "`--ckpt_path last`"
            ) from error
        _sync_folder(target.parent)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads a checkpoint.

        Raises:
            UserError: If it is damaged; names the newest whole one beside it.
        """
        check_whole(path)
        return super().load_checkpoint(path, map_location, weights_only)


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint on disk, as far as can be told without reading its tensors.

    Attributes:
        path: A file, or the folder of a distributed checkpoint.
        written: When, seconds since the epoch.
        step: Its global step; None if it is damaged.
        resumable: Whether training can go on from it: it holds more than weights.
    """

    path: Path
    written: float
    step: int | None
    resumable: bool

    @property
    def order(self) -> tuple[float, int]:
        """The one that was written last is the newest: a folder may hold those of an earlier, longer run."""
        return (self.written, -1 if self.step is None else self.step)


def stored_checkpoints(folder: Path) -> list[StoredCheckpoint]:
    """All checkpoints in a folder that training can go on from, damaged ones included; in the order of their names."""
    # A metric's name in the file name may hold slashes, and so make folders.
    paths = [path for path in sorted(folder.rglob("*.ckpt")) if path.exists()]
    found = [_read(path) for path in paths if not any(parent in path.parents for parent in paths)]
    return [checkpoint for checkpoint in found if checkpoint.resumable or checkpoint.step is None]


def newest_whole(checkpoints: Iterable[StoredCheckpoint]) -> StoredCheckpoint | None:
    """The newest one without damage."""
    for checkpoint in sorted(checkpoints, key=lambda stored: stored.order, reverse=True):
        if checkpoint.step is not None and damage(checkpoint.path) is None:
            return checkpoint
    return None


def check_whole(path: str | Path) -> None:
    """Refuses a damaged checkpoint; says nothing about one that does not exist, or is remote.

    Raises:
        UserError: With what is wrong, and the newest whole checkpoint of the same folder.
    """
    if is_remote(path) or not Path(path).exists() or (reason := damage(Path(path))) is None:
        return
    others = [stored for stored in stored_checkpoints(Path(path).parent) if stored.path != Path(path)]
    before = newest_whole(others)
    way_out = (
        "there is no other whole checkpoint beside it; start a new run"
        if before is None
        else f"go on from the newest whole one beside it, of step {before.step}: --ckpt_path '{before.path}'"
    )
    raise UserError(f"a checkpoint must be whole to go on from, and {str(path)!r} is not: {reason}; {way_out}")


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is whole.

    A file is whole if it is a zip, as torch.save writes it, whose checksums are right (torch.load does not compare
    them). A distributed checkpoint is, if it holds the files that are written last.
    """
    if path.is_dir():
        missing = [name for name in _WRITTEN_LAST if not (path / name).is_file()]
        return f"its {' and '.join(missing)} is missing, which is written last" if missing else None
    stat = path.stat()
    return _file_damage(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _file_damage(path: Path, size: int, _changed: int) -> str | None:
    # Read once; the size and the time tell a file that was rewritten.
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        return f"{size:,} bytes that are no whole zip ({error})"
    return None if record is None else f"the checksum of its record {record!r} is wrong"


def _read(path: Path) -> StoredCheckpoint:
    written = path.stat().st_mtime
    try:
        content = without_tensors(path)
        return StoredCheckpoint(path, written, int(content["global_step"]), "lr_schedulers" in content)
    except Exception:  # a damaged pickle raises nearly anything
        return StoredCheckpoint(path, written, None, False)


def without_tensors(path: Path) -> dict[str, Any]:
    """A checkpoint's content with tensors that have no values; of a distributed one without the models."""
    if path.is_dir():
        return torch.load(path / _WRITTEN_LAST[-1], map_location="meta", weights_only=True)
    return torch.load(path, map_location="meta", mmap=True, weights_only=True)


def is_remote(path: str | Path) -> bool:
    """Whether a path is a URL (``s3://...``)."""
    return "://" in str(path)


def _sync_folder(folder: Path) -> None:
    """Forces the names in a folder to the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
