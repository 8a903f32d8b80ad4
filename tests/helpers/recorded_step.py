"""One optimizer step under a strategy, and the loss and the gradients that came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from strategies import strategy
from torch import Tensor
from torch.distributed.tensor import DTensor

from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, TextSource


class StepRecorder(pl.Callback):
    """The loss of a step, the gradients that the optimizer gets, and the student's tokens in every batch."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self.batches: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        self.batches.append((batch.student.input_ids, batch.student.attention_mask))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        for name, weight in pl_module.named_parameters():
            if weight.grad is not None:
                gradient = weight.grad
                whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                self.found[name] = whole.detach().clone().contiguous()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.found["loss"] = outputs["total"].detach().clone()


def fit_step(
    name: str,
    module: MultiTeacherDistillModule,
    texts: Path,
    *callbacks: pl.Callback,
    num_texts: int,
    num_batches: int = 1,
) -> StepRecorder:
    """Trains for a step that sees all texts.

    Args:
        name: Strategy, see `strategies.strategy`.
        module: The module.
        texts: File of as many texts as a step has.
        callbacks: Further callbacks.
        num_texts: Their number.
        num_batches: Batches of each process.
    """
    arguments, recorder = strategy(name), StepRecorder()
    batch_size = num_texts // arguments["devices"] // num_batches
    data = DistillDataModule(TextSource(path=str(texts)), sequence_length=64, batch_size=batch_size, num_workers=0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=num_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder, *callbacks],
        **arguments,
    )
    trainer.fit(module, data)
    return recorder
