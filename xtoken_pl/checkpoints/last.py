"""Finds the checkpoint for ``--ckpt_path last``."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from xtoken_pl.checkpoints.io import check_whole, stored_checkpoints, way_out
from xtoken_pl.utilities.errors import UserError

_ANY_VERSION = "*"


def last_checkpoint(trainer: pl.Trainer) -> Path:
    """Finds the checkpoint that training resumes from: the one that was written last.

    Searches the ``dirpath`` of every ModelCheckpoint that has one, else the ``checkpoints`` of every version in the
    logger's directory.

    Raises:
        UserError: If there is none; names the directories that were searched.
        UserError: If it is damaged, so that the user has to choose another.
    """
    patterns = checkpoint_folders(trainer)
    folders = [folder for pattern in patterns for folder in _expand(pattern)]
    found = [checkpoints for folder in folders if (checkpoints := stored_checkpoints(folder))]
    if not found:
        places = " or ".join(map(str, patterns)) or "any directory, since there is no ModelCheckpoint"
        raise UserError(
            f"--ckpt_path last needs a checkpoint (with the states of optimizers) to resume from, and there is none in "
            f"{places}. Give the path of a checkpoint, or leave --ckpt_path out to start a new run"
        )
    newest, *others = max(found, key=lambda checkpoints: checkpoints[0].written)
    if newest.is_damaged:
        raise UserError(f"--ckpt_path last: {newest.path} was written last, and it is damaged; {way_out(others)}")
    for stored in others:
        if stored.is_damaged:
            rank_zero_warn(f"--ckpt_path last: {stored.path} is damaged, but not the last one; it is ignored")
        elif stored.step > newest.step:
            rank_zero_warn(
                f"--ckpt_path last: {stored.path} is of step {stored.step}, but was written before {newest.path}, of "
                f"step {newest.step}, which is used; give the path of the other to resume from it"
            )
    check_whole(newest.path)  # all of it, not only the part that holds its step
    rank_zero_info(f"--ckpt_path last: resuming from {newest.path}, step {newest.step}")
    return newest.path


def checkpoint_folders(trainer: pl.Trainer) -> list[Path]:
    """Lists the directories of the trainer's checkpoints, with a ``*`` for the version of its run."""
    given = [callback.dirpath for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return sorted({Path(folder) if folder else _default_folder(trainer) for folder in given})


def _default_folder(trainer: pl.Trainer) -> Path:
    """Directory that ModelCheckpoint chooses by default."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir) / "checkpoints"
    logger = trainer.loggers[0]
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / _ANY_VERSION / "checkpoints"


def _expand(pattern: Path) -> list[Path]:
    if pattern.parent.name != _ANY_VERSION:
        return [pattern]
    return sorted(pattern.parents[1].glob(f"{_ANY_VERSION}/{pattern.name}"))
