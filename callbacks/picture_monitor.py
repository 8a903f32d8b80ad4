"""Draws the overlap of the vocabularies, the alignment of a sample, and the predictions of both sides."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.audit import CoverageAudit, figure_of
from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks.shared import distill_module
from xtoken_pl.callbacks.trackers import log_picture, takes_pictures
from xtoken_pl.inspection import Inspection, first_sequence, predict
from xtoken_pl.inspection.pictures import predictions_figure, spans_figure
from xtoken_pl.losses import SpanLoss
from xtoken_pl.utilities.checks import check_at_least_one


class PictureMonitor(pl.Callback):
    """Logs pictures to TensorBoard, W&B and MLflow.

    - ``pictures/audit/NAME``, once: share of each category of the student's tokens that the teacher can teach;
    - ``pictures/spans/NAME``, once: both tokenizations of the first validation sequence, one above the other;
    - ``pictures/top_tokens/NAME``: for some of its spans, the most probable tokens of the teacher and of the student
      (through W, if the loss projects) and the loss; at the first validation, which is Lightning's sanity check before
      the first step, and at every ``every_n_validations``-th after it.

    Validation begins with the first source of ``data.val``: a teacher that does not teach on it has only an audit.

    The audit builds W between the two vocabularies again, except for ProjectionKL. A drawn validation costs one more
    pass of all models over one sequence, its scores (within another ``logits_memory``), and the drawing; see
    docs/trackers.md for measurements. Training and other validations cost nothing.

    Args:
        every_n_validations: Number of validations per picture.
        num_spans: Number of spans per teacher; up to half of them are spans where the tokenizers differ.
        top_k: Number of tokens per side.

    Raises:
        UserError: If an option is below 1.
    """

    def __init__(self, *, every_n_validations: int = 5, num_spans: int = 6, top_k: int = 5) -> None:
        options = {"every_n_validations": every_n_validations, "num_spans": num_spans, "top_k": top_k}
        for name, value in options.items():
            check_at_least_one(name, value, "remove the callback for no pictures")
        self.every_n_validations = every_n_validations
        self.num_spans = num_spans
        self.top_k = top_k

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = distill_module(pl_module, self)
        self._num_validations = 0
        self._is_on = not trainer.fast_dev_run and takes_pictures(trainer)  # type: ignore[attr-defined]
        if not trainer.loggers:
            rank_zero_warn("PictureMonitor draws nothing, since there is no logger for pictures; set trainer.logger")
        if self._is_on and trainer.is_global_zero:
            student, teachers = module.vocabularies()
            for name, teacher in teachers.items():
                loss = cast(SpanLoss, module.losses[name])
                audit = CoverageAudit.from_vocabularies(student, teacher, loss.projection)
                log_picture(trainer, f"pictures/audit/{name}", figure_of(audit), trainer.global_step)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: DistillBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or dataloader_idx or trainer.state.fn != "fit":
            return
        number, self._num_validations = self._num_validations, self._num_validations + 1
        if not self._is_on or number % self.every_n_validations:
            return
        module = distill_module(pl_module, self)
        sample = first_sequence(batch)
        # Every process runs the models: sharded models need all of them.
        with trainer.precision_plugin.val_step_context():
            predictions = predict(module, sample, num_spans=self.num_spans, top_k=self.top_k)
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        shown = sample.only(predictions)
        inspection = Inspection.from_batch("", shown, *module.vocabularies()).with_predictions(predictions)
        for name in inspection.teachers:
            if number == 0:
                log_picture(trainer, f"pictures/spans/{name}", spans_figure(inspection, name), step)
            log_picture(trainer, f"pictures/top_tokens/{name}", predictions_figure(inspection, name), step)
