"""Trains with split matrices, and resumes from checkpoints; started by tests/checkpoints/test_split_checkpoints.py.

python split_checkpoints.py RUN FOLDER, with the folder of `test_split_checkpoints.prepare`, in the order of `RUNS`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from strategies import Recorder

from xtoken_pl import (
    DistillDataModule,
    MultiTeacherDistillModule,
    OptimizerRecipe,
    ProjectionKL,
    Student,
    Teacher,
    TextSource,
)
from xtoken_pl.callbacks import HFExport, TeacherMonitor

NUM_STEPS, NUM_WINDOWS = 4, 4
#: Run -> data parallel and tensor parallel size, and whether every process writes a part of a checkpoint.
RUNS: dict[str, tuple[int, int, bool]] = {
    "one": (1, 1, False),
    "tensor": (1, 2, False),
    "distributed": (1, 2, True),
    "grid": (2, 2, False),
}
#: Run -> runs from whose checkpoints it resumes, besides its own; `one` does so at last.
OTHERS = {"tensor": ["one"], "grid": ["tensor"], "last": ["tensor", "grid"]}


def train(run: str, folder: Path, *callbacks: pl.Callback, ckpt_path: Path | None) -> Any:
    """The scalars of every step."""
    pl.seed_everything(1, verbose=False)
    data_size, size, is_distributed = RUNS[run]
    teacher = Teacher(model=str(folder / "split"), loss=ProjectionKL(), learn_projection=True)
    optimizer = OptimizerRecipe(learning_rate=1e-2, warmup_fraction=0.0)
    student = Student(model=str(folder / "student"), activation_checkpointing=True)
    module = MultiTeacherDistillModule(student, {"split": teacher}, optimizer=optimizer)
    source = TextSource(path=str(folder / "texts.jsonl"))
    data = DistillDataModule(source, sequence_length=64, batch_size=NUM_WINDOWS // data_size, num_workers=0)
    split = ModelParallelStrategy(data_size, size, save_distributed_checkpoint=is_distributed)
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=data_size * size,
        strategy="auto" if run == "one" else split,
        max_steps=NUM_STEPS,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[TeacherMonitor(), recorder, *callbacks],
    )
    trainer.fit(module, data, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    return recorder.steps


def main(run: str, folder: Path) -> None:
    """A whole run, and runs that resume from its checkpoint and from those of others."""
    results: dict[str, Any] = {}
    if run in RUNS:
        output = folder / run
        checkpoints = ModelCheckpoint(output, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        results["whole"] = train(run, folder, checkpoints, HFExport(str(output / "export")), ckpt_path=None)
        results["resumed"] = train(run, folder, ckpt_path=output / "step=2.ckpt")
    for other in OTHERS.get(run, []):
        now = "one" if run == "last" else run
        results[f"after {other}"] = train(now, folder, ckpt_path=folder / other / "step=2.ckpt")
    if rank_zero_only.rank == 0:
        (folder / f"{run}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
