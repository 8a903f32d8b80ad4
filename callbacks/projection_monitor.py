"""Logs the entropy of W, and how far a learned W has moved."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from xtoken_pl.callbacks.charts import Charts, Monitor, is_logged
from xtoken_pl.callbacks.shared import distill_module
from xtoken_pl.losses import ProjectionKL
from xtoken_pl.projection.statistics import row_distance, row_entropy
from xtoken_pl.training.module import MultiTeacherDistillModule

# M rows with several teacher tokens, K places of a row


class ProjectionMonitor(Monitor):
    """Logs statistics of W for every P-KL teacher: at the start of training, and at each log if W is learned.

    - ``projection/entropy/NAME``: mean entropy in bits of the rows with several teacher tokens; other rows have none.
    - ``projection/moved/NAME`` and ``projection/moved_most/NAME``, if W is learned: mean and maximum total variation
      distance of these rows from their initial values; 0 for an unchanged row, 1 for one without overlap.
    """

    def __init__(self) -> None:
        self._step = 0
        self._learned: dict[str, ProjectionKL] = {}

    def charts(self, module: MultiTeacherDistillModule) -> Charts:
        losses = undecided(module)
        learned = [name for name, loss in losses.items() if loss.learned is not None]
        return {
            "W": {
                "entropy of a row, bits": [f"projection/entropy/{name}" for name in losses],
                "how far a row has moved, mean": [f"projection/moved/{name}" for name in learned],
                "how far a row has moved, most": [f"projection/moved_most/{name}" for name in learned],
            }
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step
        losses = undecided(distill_module(pl_module, self))
        # Selected once, here: in a step it would synchronize with the device.
        self._learned = {name: loss for name, loss in losses.items() if loss.learned is not None}
        scalars = {tag: value.item() for name, loss in losses.items() for tag, value in measure(name, loss).items()}
        for logger in trainer.loggers if scalars else []:
            logger.log_metrics(scalars, step=trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if not is_logged(trainer, self._step):
            return
        self._step = trainer.global_step
        for name, loss in self._learned.items():
            pl_module.log_dict(measure(name, loss))


def undecided(module: MultiTeacherDistillModule) -> dict[str, ProjectionKL]:
    """Losses whose W has rows with several teacher tokens, by teacher name."""
    losses = {name: loss for name, loss in module.losses.items() if isinstance(loss, ProjectionKL)}
    return {name: loss for name, loss in losses.items() if len(_start_rows(loss))}


@torch.no_grad()
def measure(name: str, loss: ProjectionKL) -> dict[str, Tensor]:
    """Returns the scalars of one teacher's W, by tag."""
    learned = loss.learned
    if learned is None:
        return {f"projection/entropy/{name}": row_entropy(_start_rows(loss)).mean()}
    weights = learned.weights()[learned.rows]
    moved = row_distance(weights, learned.base[learned.rows])
    return {
        f"projection/entropy/{name}": row_entropy(weights).mean(),
        f"projection/moved/{name}": moved.mean(),
        f"projection/moved_most/{name}": moved.max(),
    }


def _start_rows(loss: ProjectionKL) -> Tensor:
    """``[M, K]`` initial rows of W with several teacher tokens."""
    assert loss.initial_projection is not None, "losses are bound in setup"
    weights = loss.initial_projection.weights
    return weights[(weights > 0).sum(dim=1) > 1]
