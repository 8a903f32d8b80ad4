"""Shared by several callbacks: a check of the module, and the output directory."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.run_folder import run_folder


def distill_module(module: pl.LightningModule, callback: pl.Callback) -> MultiTeacherDistillModule:
    """Returns the module, typed as one that distils.

    Raises:
        UserError: If it is another module.
    """
    if not isinstance(module, MultiTeacherDistillModule):
        raise UserError(
            f"{type(callback).__name__} works with MultiTeacherDistillModule and its subclasses, "
            f"got {type(module).__name__}; remove the callback"
        )
    return module


def output_folder(trainer: pl.Trainer, dirpath: str | None, default: str) -> Path:
    """Returns ``dirpath``, or ``default`` in the run's directory. All processes must call it."""
    return Path(dirpath or run_folder(trainer) / default)
