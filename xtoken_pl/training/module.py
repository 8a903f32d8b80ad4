"""The training step, readable from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torchmetrics import Metric

from xtoken_pl.batch import DistillBatch, TeacherBatch, TokenBatch
from xtoken_pl.losses import SpanLoss
from xtoken_pl.models import hidden_states
from xtoken_pl.models.sharding import release
from xtoken_pl.rollouts import Rollouts
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.tasks import GivenRows, HiddenRows, RowScores, TeacherTask, rows_of
from xtoken_pl.specs import Student, Teacher
from xtoken_pl.training.metrics import EvaluationMetrics
from xtoken_pl.training.on_policy import WritingModule, text_sums
from xtoken_pl.training.optimization import OptimizerRecipe
from xtoken_pl.training.totals import or_one
from xtoken_pl.utilities.checks import check_not_negative
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import attached_trainer
from xtoken_pl.utilities.processes import data_share
from xtoken_pl.weighting import StaticWeighting, Weighting, kind_weights, span_alphas, span_weights, teacher_scores

#: Returns the factor of L_KD, given the mean L_CE and L_KD of the optimizer step over all processes (both detached
#: scalars), as far as they are known: at the last batch of a step exactly, see
#: :meth:`xtoken_pl.training.totals.StepSums.expected_losses`.
KDScale = Callable[[Tensor, Tensor], Tensor]


class MultiTeacherDistillModule(WritingModule):
    r"""Distils one or several teachers into a student whose tokenizer may differ from theirs.

    .. math:: L = \lambda_{CE} L_{CE} + s \cdot L_{KD}, \quad
              L_{KD} = \sum_m \alpha_m \frac{\sum_{k \in K_m} w_m^{(k)} L_m^{(k)}}{\sum_{k \in K_m} w_m^{(k)}}

    with the spans :math:`K_m` that teacher m shares with the student, in the sources that it teaches on, and weights
    :math:`w_m^{(k)}` by their kinds (``spans`` of :class:`xtoken_pl.Teacher`), 1 by default. The factor s
    is ``kd_weight``, or set by :class:`xtoken_pl.callbacks.DynamicLossScaling` through :attr:`kd_scale`. Both losses
    are sums over the whole optimizer step, divided once by its tokens or the weights of its spans: the gradient does
    not depend on how the windows of a step are cut into batches (``accumulate_grad_batches``) and distributed over
    processes.

    Losses and projections are built in :meth:`setup`, weights are loaded in :meth:`configure_model`. Subclass and
    override :meth:`configure_teachers` to fix a set of teachers in code.

    A checkpoint holds weights and no specifications, so that ``load_from_checkpoint(path, student=..., teachers=...)``
    takes the arguments of this class again.

    Args:
        student: Specification of the student.
        teachers: Specifications of the teachers by name, which is their tag in the logs and their key on the command
            line (``--model.teachers.NAME.alpha 0.8``).
        weighting: Weights between teachers; static by default.
        optimizer: Optimizer and learning rate schedule; AdamW with warm-up and cosine decay by default.
        ce_weight: Fixed weight of the cross-entropy.
        kd_weight: Fixed weight of the distillation loss; at 0 no teacher is needed, and those that are given run for
            validation and monitors only.
        logits_memory: Memory in GB for logits and what the losses compute from them; None is 0.5 on a CPU, 2 on a GPU.
            If all of a batch fits, the second pass over the products of the heads is avoided; the results are the same.
        rollouts: On-policy training: in a share of the optimizer steps the student writes the text that it learns from,
            at :math:`L = \lambda_{KD} L_{KD}`, since its own text has no cross-entropy to learn or to scale by.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699
    """

    def __init__(
        self,
        student: Student,
        teachers: dict[str, Teacher] | None = None,
        weighting: Weighting | None = None,
        optimizer: OptimizerRecipe | None = None,
        *,
        ce_weight: float = 1.0,
        kd_weight: float = 1.0,
        logits_memory: float | None = None,
        rollouts: Rollouts | None = None,
    ) -> None:
        check_not_negative("ce_weight", ce_weight, "0 leaves the cross-entropy out")
        check_not_negative("kd_weight", kd_weight, "0 leaves the distillation loss out")
        if ce_weight == 0 and kd_weight == 0:
            raise UserError("ce_weight or kd_weight must be > 0, got 0 and 0: there would be nothing to learn")
        if rollouts is not None and rollouts.share > 0 and kd_weight == 0:
            raise UserError(
                "the student learns from its own text by the distillation loss alone, so that kd_weight must be > 0 "
                f"with rollouts, got {kd_weight}; raise it, or leave rollouts out"
            )
        if logits_memory is not None and not 0 < logits_memory < math.inf:
            raise UserError(
                f"logits_memory must be a finite number > 0 of GB, got {logits_memory}; 0.5 is enough for any batch"
            )
        super().__init__(
            student, teachers, weighting or StaticWeighting(), needs_teachers=kd_weight > 0, rollouts=rollouts
        )
        self.optimizer_recipe = optimizer or OptimizerRecipe()
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.logit_memory = LogitMemory(None if logits_memory is None else logits_memory * 1e9)
        self.kd_scale: KDScale = self.fixed_kd_scale

    # One step ------------------------------------------------------------------------------------------------------

    def training_step(self, batch: DistillBatch, batch_idx: int) -> STEP_OUTPUT:
        """Computes the loss for the backward pass, and detached scalars for the log.

        Returns:
            ``loss``; ``total``, ``ce``, ``kd``, ``kd_scale``; by teacher ``alpha``, ``teacher_kd``, ``span_coverage``,
            ``unmapped_mass``; and by source of a mixture ``share`` of the tokens and ``source_ce``. All but ``loss``
            are means over the optimizer step and all processes at the last batch of the step, and before that what the
            batches so far contribute to these means. An on-policy step (``is_rollout``) has ``student_nats_per_byte``
            and by teacher ``teacher_nats_per_byte``, too; one whose routers are balanced has ``router_loss``.
        """
        if self.is_on_policy_step:
            batch = self.written_batch(batch)
        step, alphas = batch.step_counts, self.domain_alphas
        for name in self.trained_teachers:
            if step.is_first and step.num_spans[name] == 0 and None not in alphas[name]:
                which = "an on-policy step" if batch.is_rollout else "a step"
                where = " on the first process" if data_share(attached_trainer(self)).number > 1 else ""
                rank_zero_warn(f"{which} has no span in common with teacher {name!r}{where}: nothing to learn from it")
        scores = self.score(batch)
        routed = self.router_sum(batch, scores.token_nats)
        self._finite.check()  # the step before
        views = teacher_scores(scores, batch, alphas, self.student_num_bytes)
        alpha = cast(dict[str, Tensor], self.weighting(views, self._sum_over_processes))  # scalars or [N]
        span_alpha = span_alphas(alpha, batch)  # scalars or [S]
        of_kinds = kind_weights(self.trained_teachers, scores.token_nats)  # [4]
        scores = scores.weighted(span_weights(of_kinds, batch))
        sources = [domain.source for domain in self.train_domains if domain.source]
        text = text_sums(scores, batch, self.student_num_bytes) if batch.is_rollout else None
        totals = self._step_sums.add(
            scores,
            views,
            alpha,
            span_alpha,
            batch,
            self._sum_over_processes,
            kind_weights=of_kinds,
            num_domains=len(sources),
            text=text,
            router_sum=routed.detach(),
        )
        if batch.is_rollout:  # its own text has no cross-entropy, neither to learn nor to scale by
            ce_weight, scale = 0.0, self.fixed_kd_scale(totals.ce, totals.total_kd)
        else:
            ce_weight, scale = self.ce_weight, self.kd_scale(*self._step_sums.expected_losses(totals, step))
        student_loss = "student's log-probability of its own text" if batch.is_rollout else "student's cross-entropy"
        teacher_losses = {f"teacher {name!r}'s loss": kd for name, kd in totals.kd.items()}
        self._finite.note(self.global_step, {student_loss: totals.ce, **teacher_losses})

        loss = (ce_weight * scores.token_nats.sum() + routed) / totals.num_tokens.clamp_min(1)
        for name, spans in scores.spans.items():
            loss = loss + (span_alpha[name] * spans.loss).sum() * (scale / or_one(totals.span_weight[name]))
        shares, source_ce = totals.by_source(sources)
        return {
            "loss": loss * self._num_averaged,
            "total": ce_weight * totals.ce + scale * totals.total_kd + totals.router_loss,
            "ce": totals.ce,
            "kd": totals.total_kd,
            "kd_scale": scale,
            "alpha": totals.mean_alpha,
            "teacher_kd": totals.kd,
            "span_coverage": totals.span_coverage,
            "unmapped_mass": totals.mean_unmapped_mass,
            "share": shares,
            "source_ce": source_ce,
            "is_rollout": batch.is_rollout,
            **({} if self.router_loss is None else {"router_loss": totals.router_loss}),
            **totals.likelihoods(scores.teacher_nats),
        }

    def score(self, batch: DistillBatch) -> RowScores:
        """Computes the cross-entropy of every kept token, and the loss of every span of each teacher that runs."""
        names = self.trained_teachers if self.training else self.teachers
        batch = batch.only(names).planned(self.planners())  # unless the data module did
        student = self.student_rows(batch.student)
        tasks = self.teacher_tasks(batch)
        scores = evaluate_rows(student, tasks, batch.only(tasks).cuts, self.logit_memory, self.tensor_group)
        has_confidence = self.training and self.weighting.row_confidence is not None
        scores = scores.with_silent(batch.teachers, has_confidence=has_confidence, has_nats=batch.is_rollout)
        # DDP waits for the gradient of every parameter, also of a W that nothing is learned from.
        unused = [weight.sum() for name in self.teachers.keys() - tasks for weight in self.losses[name].parameters()]
        return replace(scores, token_nats=scores.token_nats + 0 * sum(unused)) if self.training and unused else scores

    def student_rows(self, tokens: TokenBatch) -> HiddenRows:
        """Runs the student over its sequences, up to its head."""
        hidden = hidden_states(self.student, tokens.input_ids, tokens.attention_mask, tokens.position_ids)
        return rows_of(tokens, hidden, self.student_head)

    def teacher_rows(self, name: str, view: TeacherBatch) -> HiddenRows | GivenRows:
        """Returns a teacher's rows of a batch: it runs over its sequences, or a cache or a server gives them."""
        return self.sources[name].rows(view)

    def teacher_tasks(self, batch: DistillBatch) -> dict[str, TeacherTask]:
        """Returns the tasks of the teachers that have a span in a batch; the others are not run.

        Every process has to call it, since the passes of a sharded teacher gather its weights from all of them.
        """
        has_spans = {name: len(view.spans) > 0 for name, view in batch.teachers.items()}
        elsewhere = self._sharded_passes(has_spans)
        tasks: dict[str, TeacherTask] = {}
        for name, view in batch.teachers.items():
            if has_spans[name]:
                tasks[name] = replace(self.teacher_task(name, view), measures_nats=batch.is_rollout)
            elif name in elsewhere:
                one = batch.student.input_ids.new_zeros(1, 1)
                self.loaded_teachers[name].run(one, torch.ones_like(one))
        return tasks

    def _sharded_passes(self, has_spans: Mapping[str, bool]) -> set[str]:
        """Names of the sharded teachers that some process runs on its batch."""
        sharded = [name for name in has_spans if name in self.loaded_teachers and self.loaded_teachers[name].is_sharded]
        if all(domain.alphas.keys() >= set(sharded) for domain in self.train_domains):
            return set(sharded)  # every batch has its spans, as a rule: asking would take longer
        flags = self.student_num_bytes.new_tensor([has_spans[name] for name in sharded])
        return {name for name, is_run in zip(sharded, self._sum_over_processes(flags).tolist(), strict=True) if is_run}

    def teacher_task(self, name: str, view: TeacherBatch) -> TeacherTask:
        """Returns the task of a teacher, with its rows."""
        teacher, loss = self.teachers[name], cast(SpanLoss, self.losses[name])
        confidence = self.weighting.row_confidence if self.training else None
        plan = view.plan
        if plan is not None and loss.row_needs.branches:
            reader = self.loaded_teachers[name].branches(view.tokens, teacher.temperature)
            rows: HiddenRows | GivenRows = reader.rows
            plan = loss.look_ahead(plan, reader)
        else:
            rows = self.teacher_rows(name, view)
        return TeacherTask(rows, view.spans, loss, teacher.temperature, confidence, plan)

    @property
    def trained_teachers(self) -> dict[str, Teacher]:
        """The teachers that training steps run; none if the factor of the distillation loss is always 0."""
        return super().trained_teachers if self.kd_scale == self.fixed_kd_scale else self.teachers

    def fixed_kd_scale(self, ce: Tensor, kd: Tensor) -> Tensor:
        """Returns ``kd_weight``, the factor of the distillation loss without a callback."""
        return torch.full_like(kd, self.kd_weight)

    @property
    def _num_averaged(self) -> int:
        """Number of gradients that are averaged, where each holds only its own share of the sums.

        Strategies average over processes, and Lightning over the batches of an optimizer step.
        """
        trainer = attached_trainer(self)
        return data_share(trainer).number * (1 if trainer is None else trainer.accumulate_grad_batches)

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        if (trainer := attached_trainer(self)) is None:
            return values
        group = None if (mesh := self.device_mesh) is None else mesh["data_parallel"].get_group()
        return cast(Tensor, trainer.strategy.reduce(values, group=group, reduce_op="sum"))

    def on_after_backward(self) -> None:
        """Frees gathered weights of the teachers; averages the gradients that no strategy averages."""
        self._release_teachers()
        if self.device_mesh is not None:
            # Sharding averages the gradients of the student alone.
            for parameter in self.losses.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.trainer.strategy.reduce(parameter.grad, reduce_op="mean")

    # Validation and test -------------------------------------------------------------------------------------------

    def validation_step(self, batch: DistillBatch, batch_idx: int) -> None:
        """Logs ``val/bits_per_byte``, ``val/ce``, ``val/kd/<teacher>``, ``val/top1_agreement/<teacher>``."""
        self._evaluate(batch, "val", self.validation_metrics)

    def test_step(self, batch: DistillBatch, batch_idx: int) -> None:
        """Logs the metrics of validation under ``test/``."""
        self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: DistillBatch, stage: str, metrics: EvaluationMetrics) -> None:
        scores = self.score(batch)
        weights = span_weights(kind_weights(self.teachers, scores.token_nats), batch)
        metrics.add(scores, self.student_num_bytes[batch.student.labels], batch, weights)
        for tag, metric in metrics.items():
            self.log(f"{stage}/{tag}", cast(Metric, metric), prog_bar=tag == "bits_per_byte", on_epoch=True)
        self.release_models()

    def release_models(self) -> None:
        """Frees the weights that forward passes have left gathered; called if no backward pass follows."""
        release(self.student)
        self._release_teachers()

    def _release_teachers(self) -> None:
        for teacher in self.loaded_teachers.values():
            teacher.release()
