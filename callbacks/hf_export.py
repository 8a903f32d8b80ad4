"""Writes the student as a plain Hugging Face folder when training ends."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from xtoken_pl.callbacks.shared import distill_module, output_folder
from xtoken_pl.checkpoints.export import Form, check_form, write_adapted, write_student
from xtoken_pl.models.sharding import full_state
from xtoken_pl.specs import DType
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.files import check_target


class HFExport(pl.Callback):
    """Exports the student with its tokenizer at the end of ``fit``; ``AutoModelForCausalLM`` loads the folder.

    Args:
        dirpath: Where to; None for ``export`` in the run's log folder.
        form: Of a student with an adapter: ``merged`` loads the weights below it again, and writes a plain model;
            ``adapter`` writes the adapter alone, for ``peft.PeftModel``.
        dtype: Of the exported weights; ``auto`` keeps the trained ones.
        overwrite: Replace a folder that exists.

    Raises:
        FileExistsError: Before training, if the folder exists and ``overwrite`` is False.
        ValueError: Before training, if an adapter is to be written, and the student has none.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        *,
        form: Form = "merged",
        dtype: DType = "auto",
        overwrite: bool = False,
    ) -> None:
        self.dirpath = dirpath
        self.form = form
        self.dtype = dtype
        self.overwrite = overwrite
        #: For the run's summary: what was written, and where.
        self.written: dict[str, Path] = {}

    def check_module(self, pl_module: pl.LightningModule) -> None:
        """Refuses a form that the student has not. The command line calls it before texts are read."""
        check_form(self.form, has_adapter=distill_module(pl_module, self).student_source.adapter is not None)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.check_module(pl_module)
        target = output_folder(trainer, self.dirpath, "export")
        if trainer.is_global_zero:
            check_target(target, kind="folder", overwrite=self.overwrite)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        target = output_folder(trainer, self.dirpath, "export")
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            module = distill_module(pl_module, self)
            export_student(module, target, form=self.form, dtype=self.dtype, overwrite=self.overwrite)
            self.written = {"export": target}
            rank_zero_info(f"exported the student to {target}")


def export_student(
    module: MultiTeacherDistillModule,
    target: Path,
    *,
    form: Form = "merged",
    dtype: DType = "auto",
    overwrite: bool = False,
) -> None:
    """Writes the student; every process has to call it, and the first one writes.

    See :func:`xtoken_pl.checkpoints.export.write_student` and, of a student with an adapter,
    :func:`xtoken_pl.checkpoints.export.write_adapted`.
    """
    source, student = module.student_source, module.student
    check_form(form, has_adapter=source.adapter is not None)
    weights = full_state(student)
    if module.global_rank != 0:
        return
    tokenizer = module.student_vocabulary.tokenizer
    if source.adapter is not None:
        write_adapted(target, source, weights, tokenizer, form=form, dtype=dtype, overwrite=overwrite)
        return
    write_student(
        target,
        student.config,
        weights,
        tokenizer,
        student.generation_config,
        trust_remote_code=source.trust_remote_code,
        dtype=dtype,
        overwrite=overwrite,
    )
