"""Logs the kinds of spans in an optimizer step."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from xtoken_pl.batch import DistillBatch, SpanBatch
from xtoken_pl.callbacks.charts import Charts, Monitor, is_logged
from xtoken_pl.callbacks.shared import distill_module
from xtoken_pl.training.module import MultiTeacherDistillModule

# M teachers

#: Kinds of spans, student tokens to teacher tokens; all other spans are one to one.
KINDS = ("one_to_many", "many_to_one", "many_to_many")


class AlignmentMonitor(Monitor):
    """Logs how the student's tokens align with each teacher's, at the trainer's logging interval.

    Values are those of the logged optimizer step, over all its batches and processes. For each teacher:

    - ``train/spans_per_token/NAME``: spans per learned student token of the sources that the teacher teaches on; 1 if
      every token is a span of its own, less if tokens share spans or are in none.
    - ``train/one_to_many/NAME`` (one student token, several teacher tokens), ``train/many_to_one/NAME``,
      ``train/many_to_many/NAME``: shares of these kinds of spans. All other spans are one to one.
    """

    _counts: Tensor  # [M, 5] of the batches of the step so far: tokens, then those of count_spans

    def charts(self, module: MultiTeacherDistillModule) -> Charts:
        names = list(module.teachers)
        kinds = {f"kinds of spans: {name}": [f"train/{kind}/{name}" for kind in KINDS] for name in names}
        return {"Alignment": {"spans per token": [f"train/spans_per_token/{name}" for name in names], **kinds}}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: DistillBatch, batch_idx: int
    ) -> None:
        module = distill_module(pl_module, self)
        if not (names := list(module.teachers)):
            return
        spans = torch.stack([count_spans(batch.teachers[name].spans) for name in names])  # [M, 4]
        teaches = [[alpha is not None for alpha in module.domain_alphas[name]] for name in names]  # [M, D]
        num_taught = spans.new_tensor(teaches)[:, batch.row_domain].sum(1, keepdim=True)
        counts = torch.cat((num_taught, spans), dim=1)
        self._counts = counts if batch.step_counts.is_first else self._counts + counts
        if not is_logged(trainer):
            return
        # Sum over all processes before dividing.
        totals = cast(Tensor, trainer.strategy.reduce(self._counts, reduce_op="sum"))
        for name, (num_tokens, num_spans, *of_kinds) in zip(names, totals, strict=True):
            shares = zip(KINDS, of_kinds, strict=True)
            scalars = {f"train/{kind}/{name}": count / num_spans.clamp_min(1) for kind, count in shares}
            pl_module.log_dict(scalars | {f"train/spans_per_token/{name}": num_spans / num_tokens.clamp_min(1)})


def count_spans(spans: SpanBatch) -> Tensor:
    """Returns ``[4]`` float counts: all spans, then each of :data:`KINDS`."""
    student, teacher = spans.student_length > 1, spans.teacher_length > 1
    kinds = (torch.ones_like(student), ~student & teacher, student & ~teacher, student & teacher)
    return torch.stack([kind.sum() for kind in kinds]).float()
