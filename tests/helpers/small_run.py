"""A small run for tests of the command line: its configuration, models and texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

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
