"""Short runs of students that learn by an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from xtoken_pl import DistillDataModule, LoRA, MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TextSource


def student_of(folder: Path, name: str = "student", **options: Any) -> Student:
    return Student(model=str(folder / name), adapter=LoRA(**{"rank": 4, "dropout": 0.1, **options}))


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.steps.append(outputs["loss"].item())


def train(
    folder: Path,
    student: Student,
    *callbacks: pl.Callback,
    num_steps: int,
    ckpt_path: Path | None = None,
) -> tuple[MultiTeacherDistillModule, list[float]]:
    """Trains for at most four steps with a learned W; returns the module and the losses."""
    pl.seed_everything(1, verbose=False)
    teacher = Teacher(model=str(folder / "split"), loss=ProjectionKL(), learn_projection=True)
    module = MultiTeacherDistillModule(student, {"split": teacher})
    module.optimizer_recipe = type(module.optimizer_recipe)(learning_rate=1e-2, warmup_fraction=0.0)
    data = DistillDataModule(
        TextSource(path=str(folder / "texts.jsonl")), sequence_length=64, batch_size=2, num_workers=0
    )
    losses = Losses()
    fitted = pl.Trainer(
        accelerator="cpu",
        max_steps=4,
        limit_train_batches=num_steps,
        max_epochs=1,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        callbacks=[losses, *callbacks],
    )
    fitted.fit(module, data, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    return module, losses.steps


def checkpoints(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def logits_of(model: Any) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None], use_cache=False).logits
