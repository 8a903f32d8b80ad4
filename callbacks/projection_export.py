"""Writes the projections that were learned when training ends."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.callbacks.shared import distill_module, output_folder
from xtoken_pl.utilities.files import check_target

logger = logging.getLogger(__name__)


class ProjectionExport(pl.Callback):
    """Writes each learned W to ``NAME.safetensors`` at the end of ``fit``, to start from or to look at.

    ``projection: FOLDER/NAME.safetensors`` of a teacher reads it, fixed or learned further.

    Args:
        dirpath: Where to; None for ``projections`` in the run's log folder.
        overwrite: Replace files that exist.

    Where no teacher learns its W a warning says that nothing will be written.

    Raises:
        FileExistsError: Before training, if a file exists and ``overwrite`` is False.
    """

    def __init__(self, dirpath: str | None = None, *, overwrite: bool = False) -> None:
        self.dirpath = dirpath
        self.overwrite = overwrite
        #: For the run's summary: what was written, and where.
        self.written: dict[str, Path] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        teachers = distill_module(pl_module, self).teachers
        names = [name for name, teacher in teachers.items() if teacher.learn_projection]
        if not names:
            rank_zero_warn("no teacher has learn_projection set: ProjectionExport will write nothing")
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
