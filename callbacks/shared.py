"""What several callbacks share: the module that they work with, and the folder that they write to."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.run_folder import run_folder


def distill_module(module: pl.LightningModule, callback: pl.Callback) -> MultiTeacherDistillModule:
    """The module, if it is one that distils.

    Raises:
        UserError: If it is another one.
    """
    if not isinstance(module, MultiTeacherDistillModule):
        raise UserError(
            f"{type(callback).__name__} works with MultiTeacherDistillModule and its subclasses, "
            f"got {type(module).__name__}"
        )
    return module


def output_folder(trainer: pl.Trainer, dirpath: str | None, default: str) -> Path:
    """``dirpath``, or the folder ``default`` in the run's folder, which every process has to ask for."""
    return Path(dirpath or run_folder(trainer) / default)
