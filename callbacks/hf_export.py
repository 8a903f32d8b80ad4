"""Writes the student as a plain Hugging Face checkpoint when training ends."""

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
    """Exports the student and its tokenizer at the end of ``fit``, for ``AutoModelForCausalLM``.

    Args:
        dirpath: Output directory; None for ``export`` in the run's log directory.
        form: For a student with an adapter: ``merged`` reloads the base weights and writes a plain model; ``adapter``
            writes the adapter alone, for ``peft.PeftModel``.
        dtype: Dtype of the exported weights; ``auto`` keeps that of training.
        overwrite: Overwrite an existing directory.

    Raises:
        UserError: Before training, if the directory exists and ``overwrite`` is False, or if ``form="adapter"`` and
            the student has no adapter, or is the text model of a multimodal checkpoint.
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
        #: Paths written, by description, for the run's summary.
        self.written: dict[str, Path] = {}

    def check_module(self, pl_module: pl.LightningModule) -> None:
        """Checks that the student has the form to export. The command line calls this before it reads any data."""
        source = distill_module(pl_module, self).student_source
        check_form(self.form, source, has_adapter=source.adapter is not None)

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
    """Exports the student. All processes must call it; the first one writes.

    See :func:`xtoken_pl.checkpoints.export.write_student` and, for a student with an adapter,
    :func:`xtoken_pl.checkpoints.export.write_adapted`.
    """
    source, student = module.student_source, module.student
    check_form(form, source, has_adapter=source.adapter is not None)
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
