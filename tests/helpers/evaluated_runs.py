"""Training runs with lm-eval evaluations, for tests of EvalHarness."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from eval_tasks import write_tasks
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from small_models import TEXTS, packing_tokenizer, write_model
from torch import Tensor

from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, OptimizerRecipe, Student, TextSource
from xtoken_pl.callbacks import EvalHarness

TASKS: dict[str, int | None] = {"words": 2, "sums": 1, "stories": None}


def write_workspace(path: Path) -> Path:
    """Writes a student with dropout, texts, and the tasks."""
    write_model(path / "student", packing_tokenizer(), seed=1, scale=2.0)
    config = json.loads((path / "student/config.json").read_text())
    (path / "student/config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
    (path / "texts.txt").write_text("\n".join(TEXTS[0][:2000].splitlines()))
    write_tasks(path / "tasks")
    return path


class Recorder(pl.Callback):
    """Records loss, random states and module modes after each step."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        drawn = (torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state()))
        modes = [part.training for part in module.modules()]
        self.steps.append((outputs["total"].item(), drawn, modes))


class FrozenPart(pl.Callback):
    """Keeps a part of the student in evaluation mode during training."""

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        module.student.lm_head.eval()


def fit(folder: Path, root: Path, *callbacks: pl.Callback, **options: Any) -> tuple[pl.Trainer, list[Tensor]]:
    pl.seed_everything(1, verbose=False)
    optimizer = OptimizerRecipe(learning_rate=1e-3, warmup_fraction=0.0)
    module = MultiTeacherDistillModule(Student(model=str(folder / "student")), kd_weight=0.0, optimizer=optimizer)
    source = TextSource(path=str(folder / "texts.txt"))
    data = DistillDataModule(source, source, sequence_length=32, batch_size=2, num_workers=0)
    arguments: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": str(root),
        "max_steps": 4,
        "limit_val_batches": 1,
        "val_check_interval": 2,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "logger": TensorBoardLogger(str(root), name="", version="run"),
        **options,
    }
    trainer = pl.Trainer(callbacks=list(callbacks), **arguments)
    trainer.fit(module, data)
    return trainer, [parameter.detach().clone() for parameter in module.parameters()]


def harness(folder: Path, tasks: dict[str, int | None] | None = None, **options: Any) -> EvalHarness:
    return EvalHarness(tasks or TASKS, **{"include_path": str(folder / "tasks"), "batch_size": 2, **options})
