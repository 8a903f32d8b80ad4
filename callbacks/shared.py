"""Shared by several callbacks: a check of the module, the kinds of its steps, and the output directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from xtoken_pl.rollouts import Rollouts
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


def step_kinds(module: pl.LightningModule) -> list[StepKind]:
    """Kinds of optimizer steps that a run has."""
    rollouts: Rollouts | None = getattr(module, "rollouts", None)
    share = 0 if rollouts is None else rollouts.share
    kinds: dict[StepKind, bool] = {"train": share < 1, "rollouts": share > 0}
    return [kind for kind, exists in kinds.items() if exists]


def step_kind(outputs: Mapping[str, Any]) -> StepKind:
    """Kind of the step that the outputs of ``training_step`` belong to."""
    return "rollouts" if outputs.get("is_rollout", False) else "train"


def written_step(module: pl.LightningModule) -> WrittenStep:
    """Returns what the student has written for the on-policy step that has just ended."""
    written: WrittenStep | None = getattr(module, "written", None)
    assert written is not None, "an on-policy step has no rollouts"
    return written


def output_folder(trainer: pl.Trainer, dirpath: str | None, default: str) -> Path:
    """Returns ``dirpath``, or ``default`` in the run's directory. All processes must call it."""
    return Path(dirpath or run_folder(trainer) / default)
