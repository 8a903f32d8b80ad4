"""Pages of charts for the scalars that callbacks log: TensorBoard's custom scalars."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks.shared import distill_module, step_kinds
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.lightning_internals import forget_logged, is_accumulating

#: Page -> chart -> the tags of its curves.
Charts = dict[str, dict[str, list[str]]]

#: The order of the pages; others follow.
PAGES = ("Losses", "Teachers", "Rollouts", "Data", "Alignment", "W", "Throughput", "Validation")

# Values of one kind of step only, on the data or on-policy.
_OF_ONE_KIND = ("train/", "data/", "rollouts/")


class Monitor(pl.Callback, ABC):
    """Logs scalars, and groups them in charts for the dashboard.

    TensorBoard takes one layout, for all callbacks: the first monitor of a trainer writes it when ``fit`` starts, with
    the charts of every callback that has a method ``charts``.
    """

    @abstractmethod
    def charts(self, module: MultiTeacherDistillModule) -> Charts:
        """Pages of charts for the tags that will be logged, and for no others."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        first = next(callback for callback in callbacks if isinstance(callback, Monitor))
        if first is not self or not trainer.is_global_zero:
            return
        layout = custom_scalars_layout(collect_charts(callbacks, distill_module(pl_module, self)))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(layout)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: DistillBatch, batch_idx: int
    ) -> None:
        if len(step_kinds(distill_module(pl_module, self))) > 1 and batch.step_counts.is_first and has_logged(trainer):
            # Without a step of its kind until the next log, a value would be written again as if it were new.
            forget_logged(trainer, _OF_ONE_KIND)


def is_logged(trainer: pl.Trainer) -> bool:
    """Whether the batch that has just ended completes a step whose scalars are written."""
    return has_logged(trainer) and not is_accumulating(trainer)


def has_logged(trainer: pl.Trainer) -> bool:
    """Whether the scalars of the last complete step are written."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and trainer.global_step % every == 0


def collect_charts(callbacks: Iterable[pl.Callback], module: MultiTeacherDistillModule) -> Charts:
    """The charts of all callbacks by page, without charts that have no curve."""
    pages: Charts = {}
    for callback in callbacks:
        if charts := getattr(callback, "charts", None):
            for page, of_page in charts(module).items():
                # A run on cross-entropy alone has no teacher, and so no tags for their charts.
                drawn = {title: tags for title, tags in of_page.items() if tags}
                if drawn:
                    pages.setdefault(page, {}).update(drawn)
    order = [*PAGES, *pages]
    return {page: pages[page] for page in sorted(pages, key=order.index)}


def custom_scalars_layout(pages: Charts) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's layout: page -> chart -> (kind, patterns)."""
    # Its tags are patterns that match from the start: without an end, train/kd would be train/kd_scale, too.
    return {
        page: {title: ["Multiline", [f"{re.escape(tag)}$" for tag in tags]] for title, tags in charts.items()}
        for page, charts in pages.items()
    }
