"""Runs of a small student whose optimizer steps are cut into batches; as a script, on two processes.

python accumulated_runs.py STRATEGY FOLDER, with the folder of :func:`write_models_and_texts`: cuts steps of 8 windows
into 4 batches on each process, and writes what came out to FOLDER/STRATEGY-DTYPE.pt.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, without_bos_and_eos, write_model, write_neox
from torch import Tensor
from torch.distributed.tensor import DTensor

from xtoken_pl import (
    BytePrefixKL,
    DistillDataModule,
    MultiTeacherDistillModule,
    OptimizerRecipe,
    ProjectionKL,
    Student,
    Teacher,
    TextSource,
)
from xtoken_pl.callbacks import AlignmentMonitor, TeacherMonitor
from xtoken_pl.checkpoints.io import AtomicCheckpointIO
from xtoken_pl.utilities.lightning_internals import is_accumulating

#: Windows of a batch, and batches of a step.
Cut = tuple[int, int]


def write_models_and_texts(folder: Path) -> None:
    """Models, and texts of uneven lengths, some of which have no span with the teacher that splits."""
    for name, dropout in (("student", 0.0), ("with_dropout", 0.1)):
        write_neox(folder / name, packing_tokenizer(), dropout=dropout)
    # Without an eos, a text of one of its tokens has none with a predecessor.
    write_model(folder / "split", without_bos_and_eos(splitting_tokenizer()), seed=2)
    write_model(folder / "same", packing_tokenizer(), seed=3)
    lengths = [3, 48, 17, 40, 1, 29, 44]
    for step in (8, 32):
        # Twenty steps are two epochs, each of which ends with half a step.
        texts = [TEXTS[index % 40][: lengths[index % 7]] for index in range(9 * step + step // 2)]
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"texts{step}.jsonl").write_text("".join(lines))


@dataclass(eq=False)
class Recorder(pl.Callback):
    """The logged values of every optimizer step."""

    steps: list[dict[str, Tensor]] = field(default_factory=list)
    without_span: int = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self.without_span += len(batch.teachers["split"].spans) == 0
        if not is_accumulating(trainer):
            self.steps.append({tag: value.clone() for tag, value in trainer.callback_metrics.items()})


def module_of(folder: Path, dtype: Any, student: str) -> MultiTeacherDistillModule:
    pl.seed_everything(0, verbose=False)
    teachers = {
        "split": Teacher(
            model=str(folder / "split"),
            loss=ProjectionKL(),
            learn_projection=dtype == "float32",  # the weights of W are
            alpha=0.3,
            spans={"one_to_many": 0.3, "many_to_many": 0.0},
            dtype=dtype,
        ),
        "same": Teacher(model=str(folder / "same"), loss=BytePrefixKL(), alpha=0.7, dtype=dtype),
    }
    recipe = OptimizerRecipe(learning_rate=3e-3)
    specification = Student(model=str(folder / student), dtype=dtype)
    return MultiTeacherDistillModule(specification, teachers, optimizer=recipe)


def fit(
    folder: Path,
    cut: Cut,
    *callbacks: pl.Callback,
    dtype: Any = "float32",
    ckpt_path: Path | None = None,
    student: str = "student",
    streaming: bool = False,
    **options: Any,
) -> tuple[MultiTeacherDistillModule, Recorder]:
    batch_size, num_batches = cut
    module, recorder = module_of(folder, dtype, student), Recorder()
    num_windows = batch_size * num_batches * options.setdefault("devices", 1)
    source = TextSource(path=str(folder / f"texts{num_windows}.jsonl"))
    data = DistillDataModule(
        source, sequence_length=48, batch_size=batch_size, num_workers=0, seed=3, streaming=streaming, shuffle_buffer=20
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        gradient_clip_val=1.0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, TeacherMonitor(), AlignmentMonitor(), recorder],
        plugins=[AtomicCheckpointIO()],
        **{"accumulate_grad_batches": num_batches, "max_epochs": 2, "logger": False, "log_every_n_steps": 1, **options},
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, recorder


def parameters(module: MultiTeacherDistillModule) -> dict[str, Tensor]:
    """Whole parameters, gathered if they are sharded."""
    named = ((name, parameter.detach()) for name, parameter in module.named_parameters())
    return {name: value.full_tensor() if isinstance(value, DTensor) else value.clone() for name, value in named}


if __name__ == "__main__":
    strategy, place = sys.argv[1], Path(sys.argv[2])
    for precision in ("float64", "float32"):
        trained, seen = fit(place, (1, 4), dtype=precision, devices=2, strategy=strategy)
        result = {"steps": seen.steps, "parameters": parameters(trained)}
        if trained.trainer.is_global_zero:
            torch.save(result, place / f"{strategy}-{precision}.pt")
