"""Refuses Lightning's callbacks that cannot work with these modules, before texts are read."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.trainer.states import TrainerFn

from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import sets_learning_rate

_REFUSED: dict[type[pl.Callback], str] = {
    BatchSizeFinder: "cannot change the batch size of a run, since the order of its data and its learning rate depend "
    "on it; remove the callback, `python -m xtoken_pl plan` tells which data.batch_size fits a GPU",
    LearningRateFinder: "cannot set the learning rate, since the schedule of model.optimizer sets it at every step; "
    "remove the callback, and compare values of model.optimizer.learning_rate in short runs, or only get a suggestion "
    "(update_attr: false)",
    StochasticWeightAveraging: "copies the module before its weights are loaded, so that it averages nothing, and "
    "replaces the learning rate schedule; use lightning.pytorch.callbacks.EMAWeightAveraging or WeightAveraging",
    ModelPruning: "looks for weights to prune before they are loaded; remove the callback, and prune the exported "
    "student",
    BackboneFinetuning: "needs a module with an attribute `backbone`; remove the callback, and give the student an "
    "adapter (model.student.adapter) to train a part of it",
}


def check_callbacks(trainer: pl.Trainer) -> None:
    """Refuses callbacks that would fail, or whose work would be lost.

    Before training it also calls ``check_trainer(trainer)`` of every callback that defines it.

    Raises:
        UserError: With the reason and the way out.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if trainer.state.fn == TrainerFn.FITTING and (check := getattr(callback, "check_trainer", None)):
            check(trainer)
        if isinstance(callback, GradientAccumulationScheduler) and trainer.max_steps == -1:
            raise UserError(
                "with GradientAccumulationScheduler the learning rate schedule does not know the number of steps; set "
                "trainer.max_steps, or replace the callback by trainer.accumulate_grad_batches"
            )
        if isinstance(callback, LearningRateFinder) and not sets_learning_rate(callback):
            continue
        if isinstance(callback, BackboneFinetuning) and hasattr(trainer.lightning_module, "backbone"):
            continue
        for kind, reason in _REFUSED.items():
            if isinstance(callback, kind):
                raise UserError(f"{type(callback).__name__} {reason}")
