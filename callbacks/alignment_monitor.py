"""Logs the kinds of spans in an optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from xtoken_pl.batch import SPAN_KINDS, DistillBatch, SpanBatch
from xtoken_pl.callbacks.charts import Charts, Monitor, is_logged
from xtoken_pl.callbacks.shared import distill_module, step_kind, step_kinds, written_step
from xtoken_pl.data import collate
from xtoken_pl.data.cutting import Window
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.tensors import filled

# M teachers

#: Kinds of spans whose shares are logged; all other spans are one to one.
KINDS = SPAN_KINDS[1:]


class AlignmentMonitor(Monitor):
    """Logs how the student's tokens align with each teacher's, at the trainer's logging interval.

    Values are those of the logged optimizer step, over all its batches and processes; those of an on-policy step are
    under ``rollouts/`` instead of ``train/``. For each teacher:

    - ``train/spans_per_token/NAME``: spans per learned student token of the sources that the teacher teaches on; 1 if
      every token is a span of its own, less if tokens share spans or are in none.
    - ``train/one_to_many/NAME`` (one student token, several teacher tokens), ``train/many_to_one/NAME``,
      ``train/many_to_many/NAME``: shares of these kinds of spans. All other spans are one to one.
    """

    _counts: Tensor  # [M, 5] of the batches of the step so far: tokens, then those of count_spans

    def charts(self, module: MultiTeacherDistillModule) -> Charts:
        names, pages = list(module.teachers), Charts()
        for kind in step_kinds(module):
            of_spans = {f"kinds of spans: {name}": [f"{kind}/{shape}/{name}" for shape in KINDS] for name in names}
            page = {"train": "Alignment", "rollouts": "Rollouts"}[kind]
            pages[page] = {"spans per token": [f"{kind}/spans_per_token/{name}" for name in names], **of_spans}
        return pages

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: DistillBatch, batch_idx: int
    ) -> None:
        module, kind = distill_module(pl_module, self), step_kind(outputs)
        if not (names := list(module.teachers)):
            return
        if kind == "train":
            counts = _count(module, batch)
            self._counts = counts if batch.step_counts.is_first else self._counts + counts
        elif is_logged(trainer):  # the loader's batches are not what was trained on
            self._counts = count_windows(module, written_step(module).windows)
        if not is_logged(trainer):
            return
        # Sum over all processes before dividing.
        totals = cast(Tensor, trainer.strategy.reduce(self._counts, reduce_op="sum"))
        for name, (num_tokens, num_spans, *of_kinds) in zip(names, totals, strict=True):
            shares = zip(KINDS, of_kinds, strict=True)
            scalars = {f"{kind}/{shape}/{name}": count / num_spans.clamp_min(1) for shape, count in shares}
            pl_module.log_dict(scalars | {f"{kind}/spans_per_token/{name}": num_spans / num_tokens.clamp_min(1)})


def _count(module: MultiTeacherDistillModule, batch: DistillBatch) -> Tensor:
    """Returns ``[M, 5]`` counts of a batch: tokens that the teacher teaches, then those of :func:`count_spans`."""
    names = list(module.teachers)
    spans = torch.stack([count_spans(batch.teachers[name].spans) for name in names])  # [M, 4]
    teaches = [filled([alpha is not None for alpha in module.domain_alphas[name]], spans) for name in names]  # [D]
    num_taught = torch.stack(teaches)[:, batch.row_domain].sum(1, keepdim=True)
    return torch.cat((num_taught, spans), dim=1)


def count_windows(module: MultiTeacherDistillModule, windows: Sequence[Window]) -> Tensor:
    """Returns the ``[M, 5]`` counts of windows, as :func:`_count`; a process may have none."""
    names = list(module.teachers)
    if not windows:
        return torch.zeros(len(names), 2 + len(KINDS), device=module.device)
    return _count(module, collate(windows, names).to(module.device))


def count_spans(spans: SpanBatch) -> Tensor:
    """Returns ``[4]`` float counts: all spans, then each of :data:`KINDS`."""
    counts = spans.count_kinds()
    return torch.cat((counts.sum()[None], counts[1:])).float()
