"""Logs whether spans of all kinds pull the student in the same direction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from xtoken_pl.batch import SPAN_KINDS, DistillBatch
from xtoken_pl.callbacks.charts import Charts, Monitor, has_logged, is_logged
from xtoken_pl.callbacks.clocks import pause_clock
from xtoken_pl.callbacks.shared import distill_module, step_kind
from xtoken_pl.checkpoints.run_state import random_state, set_random_state
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.tasks import HiddenRows, TeacherTask
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.checks import check_at_least_one
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import forget_logged, parallel_sizes
from xtoken_pl.utilities.words import did_you_mean

# M teachers, S spans of a teacher

_STRATEGIES = (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)


class SpanKindMonitor(Monitor):
    r"""Measures how the gradient of each kind of span agrees with that of the one-to-one spans.

    For each teacher and each kind k (student tokens to teacher tokens) with the spans :math:`K` of a batch, it takes

    .. math:: g_k = \nabla_\theta \, \frac{1}{|K|} \sum_{j \in K} L^{(j)}

    in the student's trained parameters, without alpha, the weights of kinds, and the scale, and logs

    - ``span_kinds/NAME/KIND/cosine``: cosine of :math:`g_k` with that of the one-to-one spans, in [-1, 1], 0 if either
      is zero; for the other kinds that have spans, if there are one-to-one spans;
    - ``span_kinds/NAME/KIND/norm``: norm of :math:`g_k`, for each kind that has spans, nats;
    - ``span_kinds/NAME/KIND/share``: share of the kind in the teacher's spans, in [0, 1].

    A cosine near 0 or below says that the kind teaches something else than spans of one token on both sides do, and a
    small norm that it teaches little. Both depend on the number of spans: the gradient of a few spans is noisy.

    Measured is the last batch of an optimizer step on each process, at the weights after the step; in an on-policy
    step what the student has written. Each time costs a forward pass of the student and the teachers, a backward pass
    for each teacher and kind, and two gradients of the student's size. Training is not affected.

    Args:
        every_n_steps: Number of optimizer steps between two measurements, which are made at steps that the trainer
            logs (``log_every_n_steps``) alone.
        teachers: Names of the teachers to measure; None for all.

    Raises:
        UserError: If ``every_n_steps`` is not >= 1; before training, if a name is not that of a teacher, or the
            strategy is not one whose gradients the callback knows how to add up.
    """

    def __init__(self, *, every_n_steps: int = 500, teachers: list[str] | None = None) -> None:
        check_at_least_one("every_n_steps", every_n_steps, "remove the callback to measure nothing")
        self.every_n_steps = every_n_steps
        self.teachers = teachers

    def check_module(self, pl_module: pl.LightningModule) -> None:
        """Checks the names of the teachers. The command line calls this before it reads any data."""
        known = distill_module(pl_module, self).teachers
        for name in self.teachers or ():
            if name not in known:
                raise UserError(
                    f"teachers of SpanKindMonitor must be teachers of the run, got {name!r}"
                    f"{did_you_mean(name, known, 'leave it out for all of them')}"
                )

    def check_trainer(self, trainer: pl.Trainer) -> None:
        """Checks the strategy. The module calls this before it reads any data for training."""
        strategy = trainer.strategy
        if not isinstance(strategy, _STRATEGIES):
            raise UserError(
                "SpanKindMonitor adds up gradients of one device, DDP, or FSDP2, and the strategy is "
                f"{type(strategy).__name__}; remove the callback, or set trainer.strategy to ddp or fsdp2"
            )
        if isinstance(strategy, ModelParallelStrategy) and parallel_sizes(strategy)[1] > 1:
            raise UserError(
                "SpanKindMonitor does not add up gradients of matrices that are split over processes "
                "(tensor_parallel_size > 1); remove the callback, or set trainer.strategy to ddp or fsdp2"
            )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.check_module(pl_module)

    def charts(self, module: MultiTeacherDistillModule) -> Charts:
        charts: dict[str, list[str]] = {}
        for name in self._names(module):
            for title, value, kinds in (
                ("cosine with one to one", "cosine", SPAN_KINDS[1:]),
                ("norm of the gradient", "norm", SPAN_KINDS),
                ("share of the spans", "share", SPAN_KINDS),
            ):
                charts[f"{title}: {name}"] = [f"span_kinds/{name}/{kind}/{value}" for kind in kinds]
        return {"Span kinds": charts}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: DistillBatch, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if batch.step_counts.is_first and has_logged(trainer):
            forget_logged(trainer, ("span_kinds/",))  # measured more seldom than logged

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: DistillBatch, batch_idx: int
    ) -> None:
        module = distill_module(pl_module, self)
        if is_logged(trainer) and trainer.global_step % self.every_n_steps == 0 and self._names(module):
            pause_clock(trainer)
            if step_kind(outputs) == "rollouts":
                batch = module.last_written_batch.to(module.device)
            module.log_dict(self._measure(trainer, module, batch))

    def _names(self, module: MultiTeacherDistillModule) -> Sequence[str]:
        return list(module.teachers) if self.teachers is None else self.teachers

    def _measure(
        self, trainer: pl.Trainer, module: MultiTeacherDistillModule, batch: DistillBatch
    ) -> dict[str, Tensor]:
        """Returns the values to log, the same on every process."""
        names = self._names(module)
        batch = batch.only(names).planned(module.planners())
        counts = torch.stack([batch.teachers[name].spans.count_kinds() for name in names])
        counts = cast(Tensor, trainer.strategy.reduce(counts.float(), reduce_op="sum"))  # [M, 4]
        values: dict[str, Tensor] = {}
        gradients, forward = StudentGradients(trainer, module), trainer.precision_plugin.train_step_context
        with gradients.measuring():
            with forward():
                student = module.student_rows(batch.student)
                tasks = module.teacher_tasks(batch)
            for name, of_kinds in zip(names, counts, strict=True):
                gradients.gather()
                with forward():
                    losses = _span_losses(module, batch, student, tasks, name)  # [S]
                kind_of_span = batch.teachers[name].spans.kind if name in tasks else losses.new_full((1,), -1)
                first: list[Tensor] | None = None  # of the one-to-one spans
                for index, (kind, count) in enumerate(zip(SPAN_KINDS, of_kinds.tolist(), strict=True)):
                    values[f"span_kinds/{name}/{kind}/share"] = of_kinds[index] / of_kinds.sum().clamp_min(1)
                    if not count:
                        continue
                    # The mean is taken afterwards: in half precision the gradient of a mean would lose small values.
                    own = gradients.of(losses.where(kind_of_span == index, 0).sum())
                    norm = gradients.product(own, own).sqrt()
                    values[f"span_kinds/{name}/{kind}/norm"] = norm / count
                    if index == 0:
                        first, norm_of_first = own, norm
                    elif first is not None:
                        cosine = gradients.product(own, first) / (norm * norm_of_first)
                        values[f"span_kinds/{name}/{kind}/cosine"] = cosine.nan_to_num(0.0)
        module.release_models()
        return values


def _span_losses(
    module: MultiTeacherDistillModule,
    batch: DistillBatch,
    student: HiddenRows,
    tasks: dict[str, TeacherTask],
    name: str,
) -> Tensor:
    """Returns the loss ``[S]`` of every span of a teacher; one zero that is connected to the student if it has none."""
    own = {name: tasks[name]} if name in tasks else {}
    memory = module.logit_memory.beside()
    scores = evaluate_rows(student, own, batch.only(own).cuts, memory)
    # Without a span here, other processes may have some: sharded weights need a gradient from all of them.
    return scores.spans[name].loss if own else 0 * scores.token_nats.sum()[None]


class StudentGradients:
    """Takes gradients of losses in the student's trained parameters, summed over processes, between two steps.

    Args:
        trainer: The trainer, after the last batch of an optimizer step.
        module: The module that it trains.
    """

    def __init__(self, trainer: pl.Trainer, module: MultiTeacherDistillModule) -> None:
        self.trainer, self.module = trainer, module
        self.is_sharded = isinstance(module.student, FSDPModule)
        # Noted while they are sharded: a forward pass gathers some of them.
        self.all = list(module.parameters())
        self.parameters = [parameter for parameter in module.student.parameters() if parameter.requires_grad]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Context for forward and backward passes that leave random states and gradients of training as they are."""
        randomness = random_state()
        held = [parameter.grad for parameter in self.all]
        # A compiled layer's backward pass runs once only.
        is_compiled = self.module.student_source.compile
        eager = torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()
        try:
            with eager:
                yield
        finally:
            self._set(held)
            set_random_state(randomness)

    def gather(self) -> None:
        """Gathers the head of a sharded student, which losses need, and a backward pass frees."""
        if isinstance(self.module.student, FSDPModule):
            self.module.student.unshard()

    def of(self, loss: Tensor) -> list[Tensor]:
        """Returns the gradient of the sum of ``loss`` over all processes; of sharded weights, this process's shard."""
        self._set([None] * len(self.all))
        self.gather()
        loss.backward(retain_graph=True)
        taken = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self._set([None] * len(self.all))
        if self.is_sharded:  # sharding has averaged over processes
            return [cast(DTensor, gradient).to_local() * self.trainer.world_size for gradient in taken]
        return [cast(Tensor, self.trainer.strategy.reduce(gradient, reduce_op="sum")) for gradient in taken]

    def _set(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.all, gradients, strict=True):
            parameter.grad = gradient

    def product(self, one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
        """Returns the scalar product of two gradients, at least in single precision."""
        terms = [(a.to(_precise(a)) * b.to(_precise(b))).sum() for a, b in zip(one, other, strict=True)]
        total = torch.stack([term.to(terms[0].dtype) for term in terms]).sum()
        return cast(Tensor, self.trainer.strategy.reduce(total, reduce_op="sum")) if self.is_sharded else total


def _precise(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
