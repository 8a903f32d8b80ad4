"""The folder of a run, whatever logs it."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


def run_folder(trainer: pl.Trainer) -> Path:
    """Where a run's configuration and exports go: beside its checkpoints, each run in a folder of its own.

    Trainer.log_dir is that of the run for TensorBoard and CSV alone; of other loggers (W&B, MLflow) it is one that all
    their runs share. Every process has to ask: the first one, where alone the run has its id, tells the others.
    """
    if not trainer.loggers or isinstance(trainer.loggers[0], (TensorBoardLogger, CSVLogger)):
        return Path(trainer.log_dir or trainer.default_root_dir)
    logger = trainer.loggers[0]
    # As ModelCheckpoint chooses it.
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    folder = Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version
    return trainer.strategy.broadcast(folder)
