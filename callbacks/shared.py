"""Shared by several callbacks: a check of the module, the kinds of its steps, and the output directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from xtoken_pl.rollouts.written import WrittenStep
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.run_folder import run_folder

#: Kinds of optimizer steps, as the tags of their values begin: on the data, or on-policy.
StepKind = Literal["train", "rollouts"]


def distill_module(module: pl.LightningModule, callback: pl.Callback) -> MultiTeacherDistillModule:
    """Returns the module, typed as one that distils.

    Raises:
        UserError: If it is another module.
    """
    if not isinstance(module, MultiTeacherDistillModule):
        raise UserError(
            f"{type(callback).__name__} works with MultiTeacherDistillModule and its subclasses, "
            f"got {type(module).__name__}; remove the callback"
        )
    return module


def step_kinds(module: MultiTeacherDistillModule) -> list[StepKind]:
    """Kinds of optimizer steps that a run has."""
    rollouts = module.rollouts
    kinds: dict[StepKind, bool] = {"train": rollouts is None or rollouts.learns_data, "rollouts": rollouts is not None}
    return [kind for kind, exists in kinds.items() if exists]


def step_kind(outputs: Mapping[str, Any]) -> StepKind:
    """Kind of the step that the outputs of ``training_step`` belong to."""
    return "rollouts" if outputs.get("is_rollout", False) else "train"


def written_step(module: MultiTeacherDistillModule) -> WrittenStep:
    """Returns what the student has written for the on-policy step that has just ended."""
    assert module.written is not None, "an on-policy step has no rollouts"
    return module.written


def output_folder(trainer: pl.Trainer, dirpath: str | None, default: str) -> Path:
    """Returns ``dirpath``, or ``default`` in the run's directory. All processes must call it."""
    return Path(dirpath or run_folder(trainer) / default)
