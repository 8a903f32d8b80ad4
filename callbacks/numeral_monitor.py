"""Logs the effect of each loss on the student's multi-digit numerals."""

from __future__ import annotations

import copy
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from xtoken_pl.audit import CATEGORIES, categorize
from xtoken_pl.batch import DistillBatch, TokenBatch
from xtoken_pl.callbacks.shared import distill_module
from xtoken_pl.models.head import logits
from xtoken_pl.scoring.logit_gradients import LogitGradients, rows_in_spans
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.checks import check_at_least_one
from xtoken_pl.utilities.errors import UserError

# N student rows, K of them, R rows of numerals, V_s vocabulary size

# Categories of tokens with two or more digits, with or without a leading space.
_MULTI_DIGIT = ("numerals_2", "numerals_3", "numerals_4_or_more")


class NumeralMonitor(pl.Callback):
    r"""Measures on validation text whether the losses raise or lower the student's multi-digit tokens.

    For GOLD and a teacher that splits digits, every such token j has the gradient

    .. math:: \partial L_{common} / \partial z_j = p_S[j] \sum_{t \in C_T} \hat p_T[t] \ge 0

    (Proposition 1), so gradient descent lowers it everywhere, even where it is correct. (GOLD as a whole adds the
    gradient of its rank distance; ``uld_weight: 0`` leaves the term above.) The callback measures this for any loss,
    at rows whose label is a *multi-digit numeral*: a token of two or more ASCII digits, with or without a leading
    space. It logs means over these rows, over the measured batches and all processes. Gradients are with respect to
    the student's logits z; a positive one means that descent lowers them:

    - ``numerals/accuracy``: share of rows whose label is the most probable token;
    - ``numerals/probability``: probability of the label;
    - ``numerals/mass``: total probability of all multi-digit numerals;
    - ``numerals/ce_gradient``: gradient of the cross-entropy, summed over all multi-digit numerals: mass - 1;
    - ``numerals/kd_gradient/NAME``: the same for a teacher's loss of the span that holds the row, in nats, without
      alpha and scale; 0 for a row in no span;
    - ``numerals/kd_gradient_on_label/NAME``: gradient of that loss for the label's logit alone.

    Each measured batch costs one more pass of all models, every teacher's loss with its gradient (within another
    ``logits_memory``), and about five float32 tensors ``[K, V_s]``, where K is the number of rows in spans with
    numerals. Training is not affected.

    Args:
        num_batches: Number of batches to measure, the first ones of every validation run in each process. Sources of
            ``data.val`` follow one another: the first batches may be of the first source alone.
        preceded_by: Measure only numerals after a student token that ends with this text (``=``: results of sums).

    Raises:
        UserError: If an option is out of range; before training, if the student has no multi-digit numeral, or no
            token that ends with ``preceded_by``.
    """

    def __init__(self, *, num_batches: int = 1, preceded_by: str | None = None) -> None:
        check_at_least_one("num_batches", num_batches, "remove the callback to measure none")
        if preceded_by == "":
            raise UserError("preceded_by must be text, got ''; leave it out for all numerals")
        self.num_batches = num_batches
        self.preceded_by = preceded_by
        self._has_warned = False

    def check_module(self, pl_module: pl.LightningModule) -> None:
        """Checks that the student has numerals to measure. The command line calls this before it reads any data."""
        vocabulary = distill_module(pl_module, self).student_vocabulary
        wanted = [CATEGORIES.index(category) for category in _MULTI_DIGIT]
        self._is_numeral = torch.from_numpy(np.isin(categorize(vocabulary), wanted))  # [V_s]
        if not self._is_numeral.any():
            raise UserError(
                f"NumeralMonitor needs student tokens of two or more digits, but {vocabulary.name!r} has none (it "
                "splits numbers); remove the callback for this student"
            )
        end = (self.preceded_by or "").encode()
        self._may_precede = torch.tensor([text.endswith(end) for text in vocabulary.token_bytes])  # [V_s]
        if not self._may_precede.any():
            raise UserError(
                f"preceded_by must be the end of a student token's text, but no token of {vocabulary.name!r} ends with "
                f"{self.preceded_by!r}; give its last characters only, or leave it out for all numerals"
            )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.check_module(pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        tags = ["count", "accuracy", "probability", "mass", "ce_gradient"]
        for name in distill_module(pl_module, self).teachers:
            tags += [f"kd_gradient/{name}", f"kd_gradient_on_label/{name}"]
        self._sums = {tag: torch.zeros((), device=pl_module.device) for tag in tags}

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: DistillBatch,
        batch_idx: int,
        *_: Any,
    ) -> None:
        if batch_idx >= self.num_batches:
            return
        with trainer.precision_plugin.val_step_context():
            values = self._measure(distill_module(pl_module, self), batch)
        self._sums = {tag: total + values[tag].sum() for tag, total in self._sums.items()}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Sum over all processes before dividing: some may have no such row.
        totals = trainer.strategy.reduce(torch.stack(list(self._sums.values())), reduce_op="sum")
        count, *sums = cast(Tensor, totals)
        if count > 0:
            means = {f"numerals/{tag}": total / count for tag, total in zip(list(self._sums)[1:], sums, strict=True)}
            pl_module.log_dict(means, sync_dist=True)  # already equal on all processes, but Lightning warns without it
        elif not self._has_warned:
            self._has_warned = True
            after = "" if self.preceded_by is None else f" after {self.preceded_by!r}"
            rank_zero_warn(
                f"NumeralMonitor logs nothing: no token of two or more digits{after} is learned in the first "
                f"{self.num_batches} validation batches of each process; increase num_batches, or validate on other "
                "texts"
            )

    def _measure(self, module: MultiTeacherDistillModule, batch: DistillBatch) -> dict[str, Tensor]:
        """Returns the values ``[R]`` of every tag."""
        with torch.inference_mode(mode=False):  # autograd cannot save inference tensors
            batch = copy.deepcopy(batch).planned(module.planners())
            is_wanted = self._wanted(batch.student)  # [N]
            rows = rows_in_spans(batch, is_wanted).nonzero().squeeze(1)  # [K]
        # Every process runs the models, even without rows: sharded models need all of them.
        student = module.student_rows(batch.student)
        tasks = module.teacher_tasks(batch)
        row_logits = logits(student.hidden[rows], *student.head.parameters())  # [K, V_s]
        memory = module.logit_memory.beside()
        at = LogitGradients(rows, row_logits, student, batch.cuts, memory)
        is_numeral = self._is_numeral.to(rows.device)
        of_label = batch.student.labels[is_wanted, None]  # [R, 1]
        inside = is_wanted[rows]  # [K]

        probs = student.head.normalize(row_logits[inside]).exp()  # [R, V_s]
        values = {
            "count": probs.new_ones(len(probs)),
            "accuracy": (probs.argmax(-1) == of_label.squeeze(1)).to(probs.dtype),
            "probability": probs.gather(1, of_label).squeeze(1),
            "mass": probs[:, is_numeral].sum(-1),
            "ce_gradient": at.of_cross_entropy()[inside][:, is_numeral].sum(-1),
        }
        for name in module.teachers:
            nothing = torch.zeros_like(values["probability"])[:, None].expand(-1, len(is_numeral))
            gradient = at.of_teacher(name, tasks[name])[inside] if name in tasks else nothing  # [R, V_s]
            values[f"kd_gradient/{name}"] = gradient[:, is_numeral].sum(-1)
            values[f"kd_gradient_on_label/{name}"] = gradient.gather(1, of_label).squeeze(1)
        module.release_models()
        return values

    def _wanted(self, tokens: TokenBatch) -> Tensor:
        """``[N]``, whether a row's label is a numeral to measure."""
        device = tokens.labels.device
        before = tokens.input_ids.flatten()[tokens.rows]
        return self._is_numeral.to(device)[tokens.labels] & self._may_precede.to(device)[before]
