"""The directory of a run, for any logger."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


def run_folder(trainer: pl.Trainer) -> Path:
    """Directory of a run's configuration and exports, beside its checkpoints; every run has its own.

    ``Trainer.log_dir`` is a run's own directory only for TensorBoard and CSV; for other loggers (W&B, MLflow) all runs
    share it. Every process has to call this function: only the first one knows the run's id, and broadcasts the result.
    """
    if not trainer.loggers or isinstance(trainer.loggers[0], (TensorBoardLogger, CSVLogger)):
        return Path(trainer.log_dir or trainer.default_root_dir)
    logger = trainer.loggers[0]
    # The same choice as in ModelCheckpoint.
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    folder = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version
    return trainer.strategy.broadcast(folder)
