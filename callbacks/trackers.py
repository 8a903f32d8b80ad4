"""Pictures for every tracker that takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakSet

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100
_TAKE_PICTURES = (TensorBoardLogger, WandbLogger, MLFlowLogger)
# Loggers that a warning was given for.
_named: WeakSet[Logger] = WeakSet()


class FlatMLFlowLogger(MLFlowLogger):
    """MLFlowLogger whose metrics fit into MLflow's store of files, too: ``train/kd/NAME`` is named ``train/kd.NAME``.

    There a metric is a file, and ``train/kd`` cannot be the folder of ``train/kd/NAME`` as well. All other stores take
    either logger.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({_flat(tag): value for tag, value in metrics.items()}, step)


def takes_pictures(trainer: pl.Trainer) -> bool:
    """Whether any logger of the trainer takes pictures; one warning names each that does not."""
    for logger in trainer.loggers:
        if not isinstance(logger, _TAKE_PICTURES) and logger not in _named:
            _named.add(logger)
            rank_zero_warn(f"{type(logger).__name__} takes no pictures: they go to TensorBoard, W&B and MLflow alone")
    return any(isinstance(logger, _TAKE_PICTURES) for logger in trainer.loggers)


def log_picture(trainer: pl.Trainer, tag: str, figure: Figure, step: int) -> None:
    """Sends a figure to TensorBoard, W&B and MLflow, whichever of them the trainer has.

    It is drawn once. Any process may call it, the first one logs.

    Args:
        tag: Such as ``pictures/spans/NAME``; MLflow writes ``images/pictures~spans~NAME...``.
        step: Of training.
    """
    if not takes_pictures(trainer) or not trainer.is_global_zero:
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
    """``[H, W, 3]``. The figure belongs to no window, so that nothing is left to be closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
