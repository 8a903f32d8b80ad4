"""Writes the student as a plain Hugging Face folder when training ends."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import lightning.pytorch as pl
import torch

from xtoken_pl.callbacks.shared import distill_module, output_folder
from xtoken_pl.files import atomic_path, check_target
from xtoken_pl.module import MultiTeacherDistillModule
from xtoken_pl.teacher import DType

logger = logging.getLogger(__name__)


class HFExport(pl.Callback):
    """Exports the student with its tokenizer at the end of ``fit``; ``AutoModelForCausalLM`` loads the folder.

    Args:
        dirpath: Where to; None for ``export`` in the run's log folder.
        dtype: Of the exported weights; ``auto`` keeps the trained ones.
        overwrite: Replace a folder that exists.

    Raises:
        FileExistsError: Before training, if the folder exists and ``overwrite`` is False.
    """

    def __init__(self, dirpath: str | None = None, *, dtype: DType = "auto", overwrite: bool = False) -> None:
        self.dirpath = dirpath
        self.dtype = dtype
        self.overwrite = overwrite

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        distill_module(pl_module, self)
        target = output_folder(trainer, self.dirpath, "export")
        if trainer.is_global_zero:
            check_target(target, kind="folder", overwrite=self.overwrite)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        target = output_folder(trainer, self.dirpath, "export")
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            export_student(distill_module(pl_module, self), target, dtype=self.dtype, overwrite=self.overwrite)
            logger.info("exported the student to %s", target)


def export_student(
    module: MultiTeacherDistillModule, target: Path, *, dtype: DType = "auto", overwrite: bool = False
) -> None:
    """Writes weights (safetensors), configuration, generation configuration and tokenizer; whole or not at all."""
    student = module.student
    if dtype != "auto":
        student = copy.deepcopy(student).to(getattr(torch, dtype))  # ties are kept
    with atomic_path(target, kind="folder", overwrite=overwrite) as folder:
        student.save_pretrained(folder)
        module.student_vocabulary.tokenizer.save_pretrained(folder)
