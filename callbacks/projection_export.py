"""Writes the learned projections when training ends."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.callbacks.shared import distill_module, output_folder
from xtoken_pl.utilities.files import check_target

logger = logging.getLogger(__name__)


class ProjectionExport(pl.Callback):
    """Writes each learned W to ``NAME.safetensors`` at the end of ``fit``.

    A teacher reads it with ``projection: DIRECTORY/NAME.safetensors``, to use it fixed or to train it further. If no
    teacher learns its W, a warning says that nothing will be written.

    Args:
        dirpath: Output directory; None for ``projections`` in the run's log directory.
        overwrite: Overwrite existing files.

    Raises:
        UserError: Before training, if a file exists and ``overwrite`` is False.
    """

    def __init__(self, dirpath: str | None = None, *, overwrite: bool = False) -> None:
        self.dirpath = dirpath
        self.overwrite = overwrite
        #: Paths written, by description, for the run's summary.
        self.written: dict[str, Path] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        teachers = distill_module(pl_module, self).teachers
        names = [name for name, teacher in teachers.items() if teacher.learn_projection]
        if not names:
            rank_zero_warn("ProjectionExport will write nothing, since no teacher sets learn_projection")
        folder = output_folder(trainer, self.dirpath, "projections")
        if trainer.is_global_zero:
            for name in names:
                check_target(folder / f"{name}.safetensors", kind="file", overwrite=self.overwrite)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = output_folder(trainer, self.dirpath, "projections")
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            for name, projection in distill_module(pl_module, self).learned_projections().items():
                projection.save(folder / f"{name}.safetensors", overwrite=self.overwrite)
                self.written[f"W of {name}"] = folder / f"{name}.safetensors"
                logger.info("exported the learned projection of %r to %s", name, folder / f"{name}.safetensors")
