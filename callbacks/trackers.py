"""Sends pictures and tables to the trackers that accept them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100
_TAKE_MEDIA = (TensorBoardLogger, WandbLogger, MLFlowLogger)


class FlatMLFlowLogger(MLFlowLogger):
    """MLFlowLogger that names ``train/kd/NAME`` ``train/kd.NAME``, as MLflow's file store requires.

    There each metric is a file, so ``train/kd`` cannot also be a directory. All other stores work with either logger.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({_flat(tag): value for tag, value in metrics.items()}, step)


def takes_pictures(trainer: pl.Trainer) -> bool:
    """Whether any logger of the trainer accepts pictures; warns about each that does not."""
    return _takes(trainer, "pictures")


def takes_tables(trainer: pl.Trainer) -> bool:
    """Whether any logger of the trainer accepts tables of text; warns about each that does not."""
    return _takes(trainer, "tables of text")


def _takes(trainer: pl.Trainer, media: str) -> bool:
    for logger in trainer.loggers:
        if not isinstance(logger, _TAKE_MEDIA):
            rank_zero_warn(
                f"{type(logger).__name__} does not support {media}; use TensorBoard, W&B or MLflow to see them"
            )
    return any(isinstance(logger, _TAKE_MEDIA) for logger in trainer.loggers)


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


def log_table(
    trainer: pl.Trainer, tag: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int, *, title: str = ""
) -> None:
    """Logs a table of text to each of the trainer's TensorBoard, W&B and MLflow loggers.

    Cells are shown as they are, line by line and with all spaces: nothing in them is taken for Markdown or HTML. Any
    process may call this; only the first one logs.

    Args:
        trainer: The trainer.
        tag: Tag such as ``rollouts/samples``; MLflow writes ``tables/rollouts~samples-step=10.html``.
        columns: Headings.
        rows: Cells of each row.
        step: Training step.
        title: Text above the table.
    """
    if not trainer.is_global_zero:
        return
    table = _html(columns, rows, title)
    page = f'<!doctype html><meta charset="utf-8">{table}'
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, table, step)
        elif isinstance(logger, WandbLogger):
            from wandb import Html

            logger.log_metrics(cast(Any, {tag: Html(page, inject=False)}), step)
        elif isinstance(logger, MLFlowLogger):
            file = f"tables/{tag.replace('/', '~')}-step={step}.html"
            logger.experiment.log_text(logger.run_id, page, file)


def _html(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> str:
    """HTML of a table, with tags that TensorBoard shows. It is one block of Markdown, which has no empty line."""
    head = "".join(f"<th>{_escaped(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td><pre>{_escaped(cell)}</pre></td>' for cell in row)}</tr>" for row in rows)
    return f"<p>{_escaped(title)}</p><table><tr>{head}</tr>{body}</table>"


def _escaped(text: str) -> str:
    return escape(text).replace("\n", "&#10;")


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
