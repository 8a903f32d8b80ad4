"""Sends pictures to the trackers that accept them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100
_TAKE_PICTURES = (TensorBoardLogger, WandbLogger, MLFlowLogger)


class FlatMLFlowLogger(MLFlowLogger):
    """MLFlowLogger that names ``train/kd/NAME`` ``train/kd.NAME``, as MLflow's file store requires.

    There each metric is a file, so ``train/kd`` cannot also be a directory. All other stores work with either logger.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({_flat(tag): value for tag, value in metrics.items()}, step)


def takes_pictures(trainer: pl.Trainer) -> bool:
    """Whether any logger of the trainer accepts pictures; warns about each that does not."""
    for logger in trainer.loggers:
        if not isinstance(logger, _TAKE_PICTURES):
            rank_zero_warn(
                f"{type(logger).__name__} does not support pictures; use TensorBoard, W&B or MLflow to see them"
            )
    return any(isinstance(logger, _TAKE_PICTURES) for logger in trainer.loggers)


def log_picture(trainer: pl.Trainer, tag: str, figure: Figure, step: int) -> None:
    """Logs a figure to each of the trainer's TensorBoard, W&B and MLflow loggers.

    The figure is drawn once. Any process may call this; only the first one logs.

    Args:
        trainer: The trainer.
        tag: Tag such as ``pictures/spans/NAME``; MLflow writes ``images/pictures~spans~NAME...``.
        figure: The figure.
        step: Training step.
    """
    if not trainer.is_global_zero or not takes_pictures(trainer):
        return
    pixels = _draw(figure)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [pixels], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, pixels, key=tag, step=step)


def _flat(tag: str) -> str:
    page, slash, rest = tag.partition("/")
    return page + slash + rest.replace("/", ".")


def _draw(figure: Figure) -> NDArray[np.uint8]:
    """Returns the pixels ``[H, W, 3]``; the figure has no window that must be closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
