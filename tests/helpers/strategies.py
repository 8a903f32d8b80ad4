"""Trains small students under a strategy, and writes what came out; started as a script by test_processes.py.

python strategies.py STRATEGY FOLDER RECIPE..., with the folder of `test_processes.prepare`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from own_losses import hidden_cosine

from xtoken_pl import (
    ALM,
    BPM,
    ESCD,
    BytePrefixKL,
    ConfidenceWeighting,
    DistillDataModule,
    HybridKL,
    MultiTeacherDistillModule,
    OptimizerRecipe,
    PrefixPartitionKL,
    ProjectionKL,
    SimCT,
    SpanLoss,
    StrictTopK,
    Student,
    Teacher,
    TextSource,
)
from xtoken_pl.callbacks import (
    AlignmentMonitor,
    DynamicLossScaling,
    EvalHarness,
    HFExport,
    NumeralMonitor,
    PictureMonitor,
    ProjectionExport,
    ProjectionMonitor,
    TeacherMonitor,
    ThroughputMonitor,
)
from xtoken_pl.utilities.lightning_internals import is_accumulating

NUM_STEPS, NUM_WINDOWS = 20, 4


class Recorder(pl.Callback):
    """Every scalar of every step, and of every validation."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.validations: list[dict[str, float]] = []
        self.throughput: dict[str, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if is_accumulating(trainer):
            return
        values = trainer.callback_metrics.items()
        self.steps.append({tag: value.item() for tag, value in values if tag.startswith(("train/", "projection/"))})
        self.throughput = {tag: value.item() for tag, value in values if tag.startswith("throughput/")}

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            values = trainer.callback_metrics.items()
            self.validations.append({tag: value.item() for tag, value in values if "val/" in tag or "numerals/" in tag})


def recipes(folder: Path) -> dict[str, tuple[dict[str, Teacher], dict[str, Any]]]:
    """By name, the teachers and the other arguments of the module."""

    def split(**options: Any) -> Teacher:
        return Teacher(model=str(folder / "split"), loss=ProjectionKL(), alpha=0.5, **options)

    def same(**options: Any) -> Teacher:
        return Teacher(model=str(folder / "same"), alpha=0.3, **options)

    hybrid = Teacher(model=str(folder / "split"), loss=HybridKL(), alpha=0.2)
    others: dict[str, SpanLoss] = {"bytes": BytePrefixKL(), "marginals": BPM(), "completions": ESCD(), "units": SimCT()}
    others |= {"strict": StrictTopK(8), "likelihoods": ALM(tau=5.0), "partition": PrefixPartitionKL()}
    adaptive = {"weighting": ConfidenceWeighting(sharpness=2.0)}
    return {
        "cross": ({"split": split()}, {}),
        "same": ({"same": same()}, {}),
        "both": ({"split": split(), "same": same()}, {}),
        "adaptive": ({"split": split(), "same": same(), "hybrid": hybrid}, adaptive),
        "others": ({name: Teacher(model=str(folder / "split"), loss=loss) for name, loss in others.items()}, {}),
        "learned": ({"split": split(learn_projection=True)}, {}),
        "features": ({"same": Teacher(model=str(folder / "same"), loss=hidden_cosine(64, 32))}, {}),
        "cached": ({"split": split(cache=str(folder / "cache"))}, {}),
        "accumulated": ({"split": split(), "same": same()}, {}),
        "offloaded": ({"split": split(cpu_offload=True), "same": same(cpu_offload=True)}, {}),
        "single": ({"packing": Teacher(model=str(folder / "packing"), loss=ProjectionKL())}, {}),
    }


def strategy(name: str) -> dict[str, Any]:
    """The Trainer's arguments; one process sees the windows that several share."""

    def model_parallel(data: int, tensor: int) -> dict[str, Any]:
        split = ModelParallelStrategy(data, tensor, save_distributed_checkpoint=False)
        return {"devices": data * tensor, "strategy": split}

    choices: dict[str, dict[str, Any]] = {
        "one": {"devices": 1},
        "ddp": {"devices": 2, "strategy": "ddp"},
        "fsdp2": {"devices": 2, "strategy": "fsdp2"},
        "tensor": model_parallel(1, 2),
        "grid": model_parallel(2, 2),
    }
    return choices[name]


def main(name: str, folder: Path, chosen: list[str]) -> None:
    """Runs the chosen recipes, one after the other."""
    results: dict[str, Any] = {}
    num_shares = 1 if name in ("one", "tensor") else 2  # processes that read different windows
    for recipe, (teachers, options) in recipes(folder).items():
        if recipe not in chosen:
            continue
        pl.seed_everything(1, verbose=False)
        is_single = recipe == "single"  # steps of one row, which is a span of one token or none
        path = str(folder / ("splitting" if is_single else "student"))
        student = Student(model=path, activation_checkpointing=recipe == "offloaded")
        optimizer = OptimizerRecipe(learning_rate=1e-3, warmup_fraction=0.0)
        module = MultiTeacherDistillModule(student, teachers, optimizer=optimizer, **options)
        arguments = strategy(name)
        source = TextSource(path=str(folder / ("singles.jsonl" if is_single else "texts.jsonl")))
        # One process takes a step at once; two may cut it into two batches each, of one window.
        num_batches = 1 if recipe != "accumulated" or name == "one" else 2
        batch_size = 1 if is_single else NUM_WINDOWS // num_shares // num_batches
        data = DistillDataModule(source, source, sequence_length=64, batch_size=batch_size, num_workers=0)
        recorder, output = Recorder(), folder / name / recipe
        monitors = [TeacherMonitor(), AlignmentMonitor(), ProjectionMonitor(), ThroughputMonitor(), NumeralMonitor()]
        callbacks = [*monitors, recorder] if recipe == "accumulated" else [DynamicLossScaling(), *monitors, recorder]
        if recipe == "learned":
            callbacks += [HFExport(str(output / "export")), ProjectionExport(str(output / "projections"))]
            callbacks += [ModelCheckpoint(str(output), save_last=True, save_weights_only=False)]
        if recipe == "same":
            tasks: dict[str, int | None] = {"words": 2, "sums": 1, "stories": 0}
            callbacks += [EvalHarness(tasks, every_n_steps=10, include_path=str(folder / "tasks"), batch_size=2)]
        if is_single:  # has no numerals of several digits
            callbacks = [callback for callback in callbacks if not isinstance(callback, NumeralMonitor)]
        draws = recipe == "both"
        callbacks += [PictureMonitor(num_spans=2)] if draws else []
        trainer = pl.Trainer(
            accelerator="cpu",
            default_root_dir=str(output),
            max_steps=NUM_STEPS,
            accumulate_grad_batches=num_batches,
            gradient_clip_val=1.0,
            log_every_n_steps=1,
            check_val_every_n_epoch=7,
            logger=TensorBoardLogger(output, "", "") if draws else False,
            enable_checkpointing=recipe == "learned",
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
            **arguments,
        )
        trainer.fit(module, data)
        results[recipe] = {
            "steps": recorder.steps,
            "validations": recorder.validations,
            "throughput": recorder.throughput,
        }
        if trainer.is_global_zero:
            (folder / f"{name}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
