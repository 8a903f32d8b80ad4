"""Finds what ``--ckpt_path last`` stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from xtoken_pl.checkpoints.io import StoredCheckpoint, check_whole, newest_whole, stored_checkpoints
from xtoken_pl.utilities.errors import UserError

_ANY_VERSION = "*"


def last_checkpoint(trainer: pl.Trainer) -> Path:
    """The checkpoint that training goes on from: the one that was written last.

    Looks into the ``dirpath`` of every ModelCheckpoint that has one, else into the ``checkpoints`` of every version in
    the logger's folder.

    Raises:
        UserError: If there is none; names where was looked.
        UserError: If one that was written after it is damaged: which to take is the user's choice.
    """
    patterns = checkpoint_folders(trainer)
    folders = [folder for pattern in patterns for folder in _expand(pattern)]
    found = [checkpoints for folder in folders if (checkpoints := stored_checkpoints(folder))]
    if not found:
        places = " or ".join(map(str, patterns)) or "any folder, since there is no ModelCheckpoint"
        raise UserError(
            f"--ckpt_path last needs a checkpoint (with the states of optimizers) to go on from, and there is none in "
            f"{places}. Give the path of a checkpoint, or leave --ckpt_path out to start a new run"
        )
    candidates = max(found, key=lambda checkpoints: max(stored.written for stored in checkpoints))
    chosen = _choose(candidates)
    # Not only the record of its names, but all of it.
    check_whole(chosen.path)
    rank_zero_info(f"--ckpt_path last: going on from {chosen.path}, step {chosen.step}")
    return chosen.path


def _choose(candidates: Sequence[StoredCheckpoint]) -> StoredCheckpoint:
    newest, *others = sorted(candidates, key=lambda stored: stored.order, reverse=True)
    if newest.step is None:
        before = newest_whole(others)
        way_out = (
            "there is no whole one; start a new run"
            if before is None
            else f"go on from the one before, of step {before.step}: --ckpt_path '{before.path}'"
        )
        raise UserError(f"--ckpt_path last: {newest.path} was written last, and it is damaged; {way_out}")
    for stored in others:
        if stored.step is None:
            rank_zero_warn(f"--ckpt_path last: {stored.path} is damaged, but not the last; it is left alone")
        elif stored.step > newest.step:
            rank_zero_warn(
                f"--ckpt_path last: {stored.path} is of step {stored.step}, but was written before {newest.path}, of "
                f"step {newest.step}, which is taken; give its path to go on from it"
            )
    return newest


def checkpoint_folders(trainer: pl.Trainer) -> list[Path]:
    """Where the trainer's checkpoints go, for any version of its run (a ``*`` stands for the version)."""
    callbacks: list[Any] = [
        callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)
    ]
    folders = {Path(callback.dirpath) for callback in callbacks if callback.dirpath}
    if any(not callback.dirpath for callback in callbacks):
        folders.add(_default_folder(trainer))
    return sorted(folders)


def _default_folder(trainer: pl.Trainer) -> Path:
    # As ModelCheckpoint chooses it.
    if not trainer.loggers:
        return Path(trainer.default_root_dir) / "checkpoints"
    logger = trainer.loggers[0]
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / _ANY_VERSION / "checkpoints"


def _expand(pattern: Path) -> list[Path]:
    if pattern.parent.name != _ANY_VERSION:
        return [pattern]
    return sorted(pattern.parents[1].glob(f"{_ANY_VERSION}/{pattern.name}"))
