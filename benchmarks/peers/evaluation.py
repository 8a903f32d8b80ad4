"""One evaluation for the students of all runs, by this package."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import yaml

from benchmarks.peers.job import CONFIG
from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, Student, TextSource


def bits_per_byte(student: Path) -> float:
    """Returns the bits per byte of a saved student on all of the quickstart's validation texts.

    Args:
        student: Directory of the student, with its tokenizer.
    """
    data = yaml.safe_load(CONFIG.read_text())["data"]
    texts = TextSource(path=data["val"]["path"])
    module = MultiTeacherDistillModule(Student(model=str(student)), kd_weight=0)
    loader = DistillDataModule(
        texts, texts, sequence_length=data["sequence_length"], batch_size=data["batch_size"], num_workers=0
    )
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    [metrics] = trainer.validate(module, loader, verbose=False)
    return float(metrics["val/bits_per_byte"])
