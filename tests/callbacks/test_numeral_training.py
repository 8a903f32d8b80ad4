"""NumeralMonitor does not change training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from numeral_runs import SUMS, write_models
from torch import Tensor

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
from xtoken_pl.callbacks import DynamicLossScaling, NumeralMonitor


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_models(tmp_path_factory.mktemp("models"))


class Recorder(pl.Callback):
    """Records losses and random states after each step, and the metrics of each validation."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, bytes, Any]] = []
        self.validations: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        state = torch.get_rng_state().numpy().tobytes()
        self.steps.append((outputs["total"].item(), state, random.getstate()))

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        values = trainer.callback_metrics.items()
        self.validations.append({tag: value.item() for tag, value in values if tag.startswith(("val/", "numerals/"))})


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_is_unchanged_by_the_monitor(tmp_path: Path, folders: dict[str, str], precision: Any) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(SUMS * 4))

    def run(*callbacks: pl.Callback) -> tuple[Recorder, list[Tensor]]:
        pl.seed_everything(1, verbose=False)
        teachers = {
            "learned": Teacher(model=folders["split"], loss=ProjectionKL(), learn_projection=True),
            "prefix": Teacher(model=folders["split"], loss=BytePrefixKL()),
        }
        recipe = OptimizerRecipe(learning_rate=1e-3, warmup_fraction=0.0)
        module = MultiTeacherDistillModule(Student(model=folders["student"]), teachers, optimizer=recipe)
        source = TextSource(path=str(tmp_path / "texts.txt"))
        data = DistillDataModule(source, source, sequence_length=32, batch_size=2, num_workers=0)
        recorder = Recorder()
        pl.Trainer(
            accelerator="cpu",
            precision=precision,
            max_steps=4,
            limit_val_batches=2,
            val_check_interval=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[DynamicLossScaling(), recorder, *callbacks],
        ).fit(module, data)
        return recorder, [parameter.detach().clone() for parameter in module.parameters()]

    (plain, weights), (watched, same_weights) = run(), run(NumeralMonitor())
    assert watched.steps == plain.steps
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights, same_weights, strict=True))
    assert len(watched.validations) == 3  # the first is the sanity check
    for mine, theirs in zip(watched.validations, plain.validations, strict=True):
        numbers = {tag: value for tag, value in mine.items() if tag.startswith("numerals/")}
        assert {tag: value for tag, value in mine.items() if tag not in numbers} == theirs
        assert len(numbers) == 8
        assert numbers["numerals/ce_gradient"] == pytest.approx(numbers["numerals/mass"] - 1, rel=1e-4)
