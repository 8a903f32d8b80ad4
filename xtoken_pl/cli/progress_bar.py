"""The progress bar of ``fit``."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar


class StepProgressBar(TQDMProgressBar):
    """Lightning's progress bar, counting optimizer steps: ``step 37/100``, with ``epoch 1/3`` if there are epochs."""

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        super().on_train_start()
        bar = self.train_progress_bar
        bar.bar_format = "{desc}step {n_fmt}/{total_fmt} |{bar}| [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        bar.unit = " steps"
        num_steps = trainer.estimated_stepping_batches
        bar.total = int(num_steps) if 0 <= num_steps < math.inf else None  # not known for a run that ends by time
        bar.initial = bar.n = trainer.global_step  # a resumed run begins there
        self.on_train_epoch_start(trainer)  # Lightning does not call it for an epoch that is resumed

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        has_epochs = trainer.max_epochs is not None and trainer.max_epochs > 0
        text = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, " if has_epochs else ""
        self.train_progress_bar.set_description_str(text)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        bar, step = self.train_progress_bar, trainer.global_step
        if self.is_enabled and step > bar.n and (step % self.refresh_rate == 0 or step == bar.total):
            bar.n = step
            bar.set_postfix(self.get_metrics(trainer, pl_module))
