"""Short runs under SpanKindMonitor; as a script, on two processes.

python span_kind_runs.py STRATEGY FOLDER, with the folder of :func:`write_models_and_texts`: writes what was logged and
trained to FOLDER/STRATEGY.pt.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from accumulated_runs import parameters
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, write_model, write_neox

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
from xtoken_pl.callbacks import DynamicLossScaling, SpanKindMonitor

NUM_WINDOWS = 4


def write_models_and_texts(folder: Path) -> None:
    """Models, and texts of one epoch, one of which has a span with no teacher but that of its own tokenizer."""
    write_model(folder / "student", packing_tokenizer(), seed=1)
    write_neox(folder / "with_dropout", packing_tokenizer(), dropout=0.1)
    write_model(folder / "reverses", reversing_tokenizer(), seed=2)
    write_model(folder / "same", packing_tokenizer(), seed=3)
    texts = [TEXTS[0][:140], TEXTS[1][:140], "a", TEXTS[2][:140]]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@dataclass(eq=False)
class Recorder(pl.Callback):
    """Results and random states after each step, and the values of the monitor that were logged then."""

    steps: list[Any] = field(default_factory=list)
    values: list[dict[str, float]] = field(default_factory=list)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        randomness = torch.get_rng_state().numpy().tobytes(), random.getstate()
        gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
        self.steps.append((outputs["total"].item(), *randomness, gradients, module.training))
        metrics = trainer.callback_metrics.items()
        self.values.append({tag: value.item() for tag, value in metrics if tag.startswith("span_kinds/")})


def fit(
    folder: Path,
    *callbacks: pl.Callback,
    student: Student | str = "student",
    dtype: Any = "float32",
    batch_size: int = NUM_WINDOWS,
    module_options: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[MultiTeacherDistillModule, Recorder]:
    """Trains for two steps, of all texts each."""
    pl.seed_everything(0, verbose=False)
    reverses = {"model": str(folder / "reverses"), "dtype": dtype}
    teachers = {
        "learned": Teacher(loss=ProjectionKL(), learn_projection=dtype == "float32", **reverses),
        "prefix": Teacher(loss=BytePrefixKL(), spans={"many_to_many": 0}, **reverses),
        "same": Teacher(model=str(folder / "same"), dtype=dtype),
    }
    if isinstance(student, str):
        student = Student(model=str(folder / student), dtype=dtype)
    recipe = OptimizerRecipe(learning_rate=1e-2, warmup_fraction=0.0)
    module = MultiTeacherDistillModule(student, teachers, optimizer=recipe, **(module_options or {}))
    source = TextSource(path=str(folder / "texts.jsonl"))
    data = DistillDataModule(source, sequence_length=96, batch_size=batch_size, num_workers=0)
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, recorder],
        **{"max_steps": 2, "logger": False, **options},
    )
    trainer.fit(module, data)
    return module, recorder


if __name__ == "__main__":
    strategy, place = sys.argv[1], Path(sys.argv[2])
    cut = {"batch_size": NUM_WINDOWS // 2, "devices": 2, "strategy": strategy}
    plain, _ = fit(place, DynamicLossScaling(), **cut)
    before = parameters(plain)
    watched, seen = fit(place, DynamicLossScaling(), SpanKindMonitor(every_n_steps=1), **cut)
    result = {"values": seen.values, "plain": before, "watched": parameters(watched)}
    checkpointed = Student(model=str(place / "student"), activation_checkpointing=True)
    _, again = fit(place, DynamicLossScaling(), SpanKindMonitor(every_n_steps=1), student=checkpointed, **cut)
    if watched.trainer.is_global_zero:
        torch.save({**result, "checkpointed": again.values}, place / f"{strategy}.pt")
