"""Short runs under a Trainer, on data that need no library for data sets."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from small_models import TEXTS
from torch.utils.data import DataLoader

from benchmarks.gpu_check.setting import Setting
from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.data import Windower, collate

_BATCH_SIZE, _NUM_TOKENS = 4, 64


class LossRecorder(pl.Callback):
    """Notes the loss of every step, and the seconds since the one before.

    Attributes:
        losses: Loss of each step.
        seconds: Seconds of each step, the first of which includes what libraries set up at their first use.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self._begin = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes a step; reading the loss waits for the device."""
        self.losses.append(float(outputs["loss"]))
        self.seconds.append(time.perf_counter() - self._begin)


def fit(setting: Setting, module: MultiTeacherDistillModule, num_steps: int, **options: Any) -> LossRecorder:
    """Trains for some steps on short windows of real text.

    Args:
        setting: Where to train.
        module: The module.
        num_steps: Number of optimizer steps.
        options: Options of the Trainer.
    """
    recorder = LossRecorder()
    columns = Windower(*module.vocabularies(), _NUM_TOKENS)([text[:400] for text in TEXTS])
    windows = [{key: column[place] for key, column in columns.items()} for place in range(num_steps * _BATCH_SIZE)]
    batches = [
        collate(windows[start : start + _BATCH_SIZE], list(module.teachers), module.planners())
        for start in range(0, len(windows), _BATCH_SIZE)
    ]
    trainer = pl.Trainer(
        accelerator=setting.accelerator,
        devices=1,
        max_steps=num_steps,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
        **options,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list is a data set
    assert len(recorder.losses) == num_steps
    assert all(torch.tensor(recorder.losses).isfinite())
    return recorder
