"""Optimizer and checkpoints of the module: their content, and how training resumes exactly."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import Any, cast

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.distributed import ProcessGroup
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from xtoken_pl.batch import DistillBatch
from xtoken_pl.checkpoints import Run, Stage, verify
from xtoken_pl.checkpoints.identity import RUN_KEY, RunIdentity, describe_student
from xtoken_pl.checkpoints.run_state import RunState, drop_unused_projections
from xtoken_pl.models.tensor_parallel import tensor_mesh
from xtoken_pl.training.finite import FiniteWatch
from xtoken_pl.training.gradients import average_copies, clip, gradients_of, total_norm
from xtoken_pl.training.optimization import OptimizerRecipe
from xtoken_pl.training.parts import DistillParts
from xtoken_pl.training.totals import StepSums
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import (
    attached_trainer,
    begin_next_epoch,
    is_accumulating,
    num_batches_in_open_step,
)


class ResumableModule(DistillParts):
    """The hooks of :class:`xtoken_pl.MultiTeacherDistillModule` around its step: optimizer and checkpoints.

    The arguments are those of :class:`xtoken_pl.training.parts.DistillParts`.

    Attributes:
        optimizer_recipe: Optimizer and learning rate schedule.
        ce_weight: Weight of the cross-entropy.
        kd_weight: Weight of the distillation loss.
    """

    optimizer_recipe: OptimizerRecipe
    ce_weight: float
    kd_weight: float

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._finite = FiniteWatch()
        self._from_recipe: tuple[AdamW, LambdaLR] | None = None
        self._run_state = RunState()
        self._step_sums = StepSums()

    @property
    def tensor_group(self) -> ProcessGroup | None:
        """The processes that matrices are split over, this one among them; None without tensor parallelism."""
        mesh = tensor_mesh(self.device_mesh)
        return None if mesh is None else mesh.get_group()

    # Optimization --------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: DistillBatch, batch_idx: int) -> None:
        """Checks that the counts of a batch are those of the optimizer step that the trainer makes of it."""
        step = batch.step_counts
        if step.is_last == is_accumulating(self.trainer):
            raise UserError(
                "a batch must hold the counts of its whole optimizer step, which the losses are divided by, but batch "
                f"{step.place + 1} of {step.num_batches} {'does not end' if step.is_last else 'ends'} a step of the "
                f"trainer (accumulate_grad_batches={self.trainer.accumulate_grad_batches}); use DistillDataModule, or "
                "pass the loader through xtoken_pl.data.whole_steps"
            )
        if step.is_first and not step.is_last:
            self._run_state.begin_step()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        num_steps = self.trainer.estimated_stepping_batches
        optimizer, scheduler = self.optimizer_recipe.build(self.parameters(), num_steps, self._projection_parameters())
        self._from_recipe = (optimizer, scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Watches the student's gradient, unless a gradient scaler skips the steps that overflow."""
        if self.tensor_group is not None:
            average_copies(self.student.parameters(), self.tensor_group)
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            norm = total_norm(gradients_of(self.student.parameters()))
            self._finite.note(self.global_step, {"student's gradient": norm})

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the student's gradient; parameters of losses are neither in its norm nor clipped."""
        held = [(parameter, parameter.grad) for parameter in self.losses.parameters()]
        for parameter, _ in held:
            parameter.grad = None
        if self.tensor_group is None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            clip(gradients_of(self.student.parameters()), gradient_clip_val, gradient_clip_algorithm or "norm")
        for parameter, gradient in held:
            parameter.grad = gradient

    # Checkpoints ---------------------------------------------------------------------------------------------------

    @cached_property
    def run_identity(self) -> RunIdentity:
        """Student, teachers and settings, as checkpoints store them."""
        trainer = attached_trainer(self)
        settings: dict[str, Any] = {
            "ce_weight": self.ce_weight,
            "kd_weight": self.kd_weight,
            "weighting": str(self.weighting),
            "rollouts": None if self.rollouts is None else str(self.rollouts),
            "accumulate_grad_batches": 1 if trainer is None else trainer.accumulate_grad_batches,
            **asdict(self.optimizer_recipe),
        }
        return RunIdentity.from_models(
            self.student_source,
            self.student_vocabulary,
            self.teachers,
            self.teacher_vocabularies,
            settings,
            known_weights={
                **{name: cache.identity.model_fingerprint for name, cache in self.caches.items()},
                **{name: server.fingerprint for name, server in self.servers.items()},
            },
        )

    def configure_model(self) -> None:
        """Loads the weights and checks every head; does nothing the second time."""
        super().configure_model()
        if self._stage == TrainerFn.FITTING:
            _ = self.run_identity  # computed now, while the files are those that were loaded

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state from which a run resumes exactly, in one layout for any number of processes."""
        self._finite.check()
        self._run_state.save(checkpoint, self.run_identity, self, group_size=self._group_size)
        checkpoint[RUN_KEY]["step_losses"] = self._step_sums.state_dict()
        if self.student_source.chat_template is not None:  # to be exported; the file may change
            checkpoint[RUN_KEY]["chat_template"] = self.student_vocabulary.tokenizer.chat_template

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that does not belong to this run, and reads the state from which training resumes."""
        resumes = self._stage == TrainerFn.FITTING
        identity = self.run_identity if resumes else None
        student = identity.student if identity else describe_student(self.student_source, self.student_vocabulary)
        # Without a trainer, too, the weights must fit exactly.
        stage = cast(Stage, TrainerFn.FITTING if self._stage is None else self._stage)
        verify(checkpoint, Run(student=student, module=self, identity=identity), stage)
        if "state_dict" in checkpoint:  # a sharded run has loaded it by now
            drop_unused_projections(checkpoint["state_dict"], self)
        if resumes:
            self._run_state.load(checkpoint)
            self._step_sums.load_state_dict(checkpoint.get(RUN_KEY, {}).get("step_losses", []))

    @property
    def _group_size(self) -> int:
        return 1 if self.tensor_group is None else self.tensor_group.size()

    @property
    def _stage(self) -> str | None:
        """``fit``, ``validate`` or ``test``; None without a trainer."""
        trainer = attached_trainer(self)
        return None if trainer is None else (trainer.state.fn or TrainerFn.VALIDATING)

    def on_train_end(self) -> None:
        """Checks the last step before anything is exported."""
        self._finite.check()

    def on_train_start(self) -> None:
        """On resume, applies this run's optimizer settings over the restored ones, and restores random states."""
        begin_next_epoch(self.trainer)
        if self.trainer.ckpt_path is not None and self._from_recipe is not None:
            self.optimizer_recipe.apply_to_restored(*self._from_recipe, self._projection_parameters())
        trainer = self.trainer
        if num_open := num_batches_in_open_step(trainer):
            raise UserError(
                "a run must resume between two optimizer steps, but with trainer.accumulate_grad_batches="
                f"{trainer.accumulate_grad_batches} the checkpoint is {num_open} batches into one; set the value that "
                "the run was started with, or resume from the checkpoint of an epoch's end"
            )
        if trainer.num_training_batches < trainer.accumulate_grad_batches:
            rank_zero_warn(
                f"an epoch of {trainer.num_training_batches} batches has fewer than trainer.accumulate_grad_batches="
                f"{trainer.accumulate_grad_batches}: every optimizer step takes the {trainer.num_training_batches} "
                "batches of one epoch. Set accumulate_grad_batches to at most that, or data.batch_size lower"
            )
        self._run_state.restore(
            rank=trainer.global_rank,
            num_processes=trainer.world_size,
            step=trainer.global_step,
            group_size=self._group_size,
        )
