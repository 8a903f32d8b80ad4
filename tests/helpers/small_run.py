"""A small run for tests of the command line: its configuration, models and texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

#: Runs a verb with options and a configuration; returns the newest run's folder.
Run = Callable[..., Path]

_CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "model": {
        "student": {"model": "student"},
        "teachers": {"same": {"model": "same", "loss": {"class_path": "xtoken_pl.TokenKL"}}},
    },
    "data": {
        "train": {"path": "texts.jsonl"},
        "val": {"path": "texts.jsonl"},
        "sequence_length": 48,
        "batch_size": 2,
        "num_workers": 0,
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    },
}

#: A second teacher, whose tokenizer is another one.
SPLIT = {"model": {"teachers": {"split": {"model": "split", "loss": {"class_path": "xtoken_pl.ProjectionKL"}}}}}


def small_run() -> dict[str, Any]:
    """The configuration of one step on the CPU, without logs and checkpoints; a copy, to be changed."""
    return deepcopy(_CONFIG)


def write_models(folder: Path) -> None:
    """The student, and the teachers ``split`` and ``same``."""
    write_model(folder / "student", packing_tokenizer(), seed=1)
    write_model(folder / "split", splitting_tokenizer(), seed=2)
    write_model(folder / "same", packing_tokenizer(), seed=3)


def write_texts(folder: Path, texts: Sequence[str] = TEXTS[:4], *, length: int | None = None) -> None:
    """``texts.jsonl``, each text cut to a length."""
    lines = (json.dumps({"text": text[:length]}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text("".join(lines))


def monitored_run() -> dict[str, Any]:
    """The configuration of four steps with both teachers, TensorBoard, an export and checkpoints."""
    config = small_run()
    config["model"]["teachers"] = {**deepcopy(SPLIT)["model"]["teachers"], **config["model"]["teachers"]}
    config["model"]["teachers"]["same"]["alpha"] = 0.5
    config["model"]["optimizer"] = {"learning_rate": 1e-3}
    config["trainer"] = {
        "accelerator": "cpu",
        "max_steps": 4,
        "limit_val_batches": 2,
        "val_check_interval": 2,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": "runs", "name": "test"},
        },
        "callbacks": [
            {"class_path": "xtoken_pl.callbacks.DynamicLossScaling"},
            {"class_path": "xtoken_pl.callbacks.TeacherMonitor"},
            {"class_path": "xtoken_pl.callbacks.HFExport"},
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}},
        ],
    }
    return config


def write_monitored_run(folder: Path) -> None:
    """Models, texts and ``config.yaml``."""
    write_models(folder)
    write_texts(folder, TEXTS[:6])
    (folder / "config.yaml").write_text(yaml.safe_dump(monitored_run()))
