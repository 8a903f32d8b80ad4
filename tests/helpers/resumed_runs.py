"""A run that uses all that has a state, for tests that stop it and go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model


def write_workspace(root: Path) -> Path:
    """Models, texts and ``config.yaml``: dropout in the student, a learned W, alphas by confidence, two epochs.

    ``plain`` is the student without dropout.
    """
    write_model(root / "student", packing_tokenizer(), seed=1, hidden_size=64)
    shutil.copytree(root / "student", root / "plain")
    config = json.loads((root / "student/config.json").read_text())
    (root / "student/config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
    write_model(root / "split", splitting_tokenizer(), seed=2)
    write_model(root / "same", packing_tokenizer(), seed=3)
    # 13 windows: 7 batches of two, the last of one.
    lines = [json.dumps({"text": text}) + "\n" for text in (TEXTS[0][:400], TEXTS[1][:180], TEXTS[2][:260])]
    (root / "texts.jsonl").write_text("".join(lines))
    (root / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return root


CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "model": {
        "student": {"model": "student"},
        "teachers": {
            "split": {"model": "split", "loss": "xtoken_pl.ProjectionKL", "learn_projection": True},
            "same": {"model": "same", "loss": "xtoken_pl.TokenKL", "alpha": 0.5},
        },
        "weighting": {"class_path": "xtoken_pl.ConfidenceWeighting"},
        "optimizer": {"learning_rate": 1e-2, "warmup_fraction": 0.2},
    },
    "data": {
        "train": {"path": "texts.jsonl"},
        "val": {"path": "texts.jsonl"},
        "sequence_length": 64,
        "batch_size": 2,
        "num_workers": 0,
    },
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 2,
        "limit_val_batches": 1,
        "val_check_interval": 3,
        "num_sanity_val_steps": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": "runs", "name": "whole"},
        },
        "callbacks": [
            {"class_path": "xtoken_pl.callbacks.DynamicLossScaling"},
            {"class_path": "xtoken_pl.callbacks.TeacherMonitor"},
            {
                "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                "init_args": {"every_n_train_steps": 1, "save_top_k": -1},
            },
        ],
    },
}


class Interrupting(pl.Callback):
    """Saves a checkpoint after every batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[Path] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.saved.append(self.folder / f"{len(self.saved):02d}.ckpt")
        trainer.save_checkpoint(self.saved[-1])
