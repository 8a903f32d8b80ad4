"""Runs of a module that records the windows it is trained on, with checkpoints everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from xtoken_pl import DistillDataModule
from xtoken_pl.batch import DistillBatch
from xtoken_pl.checkpoints.io import AtomicCheckpointIO
from xtoken_pl.utilities.lightning_internals import settle_epoch


class Recorder(pl.LightningModule):
    """Records every window it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, int, tuple[int, ...]]] = []  # epoch, batch, token ids

    def training_step(self, batch: DistillBatch, batch_idx: int) -> torch.Tensor:
        for ids, mask in zip(batch.student.input_ids, batch.student.attention_mask, strict=True):
            self.seen.append((self.current_epoch, batch_idx, tuple(ids[: mask.sum()].tolist())))
        return self.weight * batch.student.input_ids.float().mean()

    def validation_step(self, batch: DistillBatch, batch_idx: int) -> None:
        pass

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        settle_epoch(checkpoint)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class SaveEverywhere(pl.Callback):
    """Saves checkpoints after batches, validations and epochs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[tuple[Path, int]] = []  # where, and the windows seen

    def _save(self, trainer: pl.Trainer, module: Recorder, moment: str) -> None:
        if not trainer.sanity_checking:
            path = self.folder / f"{len(self.saved):03d}-{moment}.ckpt"
            trainer.save_checkpoint(path)
            self.saved.append((path, len(module.seen)))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self._save(trainer, pl_module, "batch")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._save(trainer, pl_module, "validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._save(trainer, pl_module, "epoch")


def fit(data: DistillDataModule, *callbacks: pl.Callback, ckpt_path: Path | None = None, **options: Any) -> Recorder:
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        **options,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module
