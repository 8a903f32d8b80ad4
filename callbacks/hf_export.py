"""Writes the student as a plain Hugging Face folder when training ends."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from xtoken_pl.callbacks.shared import distill_module, output_folder
from xtoken_pl.export import write_student
from xtoken_pl.files import check_target
from xtoken_pl.models.sharding import full_state
from xtoken_pl.module import MultiTeacherDistillModule
from xtoken_pl.teacher import DType


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
        #: For the run's summary: what was written, and where.
        self.written: dict[str, Path] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        distill_module(pl_module, self)
        target = output_folder(trainer, self.dirpath, "export")
        if trainer.is_global_zero:
            check_target(target, kind="folder", overwrite=self.overwrite)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        target = output_folder(trainer, self.dirpath, "export")
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            export_student(distill_module(pl_module, self), target, dtype=self.dtype, overwrite=self.overwrite)
            self.written = {"export": target}
            rank_zero_info(f"exported the student to {target}")


def export_student(
    module: MultiTeacherDistillModule, target: Path, *, dtype: DType = "auto", overwrite: bool = False
) -> None:
    """Writes the student; every process has to call it, and the first one writes.

    See :func:`xtoken_pl.export.write_student`.
    """
    weights = full_state(module.student)
    if module.global_rank == 0:
        student = module.student
        write_student(
            target,
            student.config,
            weights,
            module.student_vocabulary.tokenizer,
            student.generation_config,
            trust_remote_code=module.student_source.trust_remote_code,
            dtype=dtype,
            overwrite=overwrite,
        )
