"""Logs the entropy of W, and how far a learned W has moved."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from xtoken_pl.callbacks.charts import Charts, Monitor, is_logged
from xtoken_pl.callbacks.shared import distill_module
from xtoken_pl.losses import SpanLoss
from xtoken_pl.projection import LearnedProjection
from xtoken_pl.projection.statistics import row_distance, row_entropy
from xtoken_pl.training.module import MultiTeacherDistillModule

# M rows with several teacher tokens, K places of a row


class ProjectionMonitor(Monitor):
    """Logs statistics of each W that a loss projects with: at the start of training, and at each log if W is learned.

    - ``projection/entropy/NAME``: mean entropy in bits of the rows with several teacher tokens; other rows have none.
    - ``projection/moved/NAME`` and ``projection/moved_most/NAME``, if W is learned: mean and maximum total variation
      distance of these rows from their initial values; 0 for an unchanged row, 1 for one without overlap.
    """

    def __init__(self) -> None:
        self._learned: dict[str, LearnedProjection] = {}

    def charts(self, module: MultiTeacherDistillModule) -> Charts:
        losses = undecided(module)
        learned = [name for name, loss in losses.items() if loss.learned_projection is not None]
        return {
            "W": {
                "entropy of a row, bits": [f"projection/entropy/{name}" for name in losses],
                "how far a row has moved, mean": [f"projection/moved/{name}" for name in learned],
                "how far a row has moved, most": [f"projection/moved_most/{name}" for name in learned],
            }
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        losses = undecided(distill_module(pl_module, self))
        # Selected once, here: in a step it would synchronize with the device.
        self._learned = {name: part for name, loss in losses.items() if (part := loss.learned_projection) is not None}
        scalars: dict[str, Tensor] = {}
        for name, loss in losses.items():
            part = self._learned.get(name)
            scalars |= _entropy(name, _undecided_rows(loss)) if part is None else measure(name, part)
        for logger in trainer.loggers if scalars else []:
            logger.log_metrics({tag: value.item() for tag, value in scalars.items()}, step=trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if is_logged(trainer):
            for name, part in self._learned.items():
                pl_module.log_dict(measure(name, part))


def undecided(module: MultiTeacherDistillModule) -> dict[str, SpanLoss]:
    """Losses whose W has rows with several teacher tokens, by teacher name."""
    losses = cast(dict[str, SpanLoss], dict(module.losses.items()))
    return {name: loss for name, loss in losses.items() if len(_undecided_rows(loss))}


@torch.no_grad()
def measure(name: str, learned: LearnedProjection) -> dict[str, Tensor]:
    """Returns the scalars of one teacher's learned W, by tag."""
    weights = learned.weights()[learned.rows]
    moved = row_distance(weights, learned.base[learned.rows])
    return _entropy(name, weights) | {
        f"projection/moved/{name}": moved.mean(),
        f"projection/moved_most/{name}": moved.max(),
    }


def _entropy(name: str, rows: Tensor) -> dict[str, Tensor]:
    return {f"projection/entropy/{name}": row_entropy(rows).mean()}


def _undecided_rows(loss: SpanLoss) -> Tensor:
    """``[M, K]`` initial rows of W with several teacher tokens; empty for a loss without W."""
    if loss.projection is None:
        return torch.empty(0, 0)
    weights = loss.projection.weights
    return weights[(weights > 0).sum(dim=1) > 1]
