"""The callback that stores the configuration of a run beside its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.run_folder import run_folder


class KeepConfig(SaveConfigCallback):
    """Stores the configuration of a run beside its results.

    The file gets a number if a run is resumed, or has no logger and therefore no directory of its own.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        # Lightning stores it in the logger's directory, which several runs may share.
        super().__init__(*args, **{"save_to_log_dir": False, **options})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder, number = run_folder(trainer), 1
        shares_folder = self.config.get("ckpt_path") is not None or not trainer.loggers
        self._target = folder / self.config_filename
        # Every process checks before the first one writes: a broadcast comes in between.
        while shares_folder and not self.already_saved and self._target.exists():
            number += 1
            self._target = folder / f"{Path(self.config_filename).stem}_{number}.yaml"
        is_taken = trainer.strategy.broadcast(self._target.exists()) and not self.overwrite
        if is_taken and not self.already_saved:
            raise UserError(
                f"{self._target} belongs to another run and is not overwritten by default; choose another directory "
                "(with trainer.logger or trainer.default_root_dir), or move it away"
            )
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file; only the first process is asked to."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(
            self.config, str(self._target), skip_none=False, overwrite=self.overwrite, multifile=self.multifile
        )
