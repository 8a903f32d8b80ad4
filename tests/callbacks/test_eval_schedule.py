"""Evaluations run and are logged at the chosen steps, and do not change training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from eval_tasks import METRICS
from evaluated_runs import FrozenPart, Recorder, fit, harness, write_workspace
from lightning.pytorch.callbacks import ModelCheckpoint
from logged import scalars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import LlamaForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workspace(tmp_path_factory.mktemp("evaluated"))


# Steps and logs --------------------------------------------------------------------------------------------------


def test_evaluations_are_logged_at_the_steps_of_validations(folder: Path, tmp_path: Path) -> None:
    """Two batches per step; the last step is not evaluated twice; a checkpoint can monitor a score."""
    watch = ModelCheckpoint(tmp_path, monitor="eval/stories/bits_per_byte", every_n_train_steps=2, save_top_k=-1)
    options = {"accumulate_grad_batches": 2, "val_check_interval": 4}
    fit(folder, tmp_path, harness(folder, every_n_steps=2), watch, **options)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    tags = {f"eval/{tag}" for tag in METRICS}
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("eval/")} == tags
    validated = [event.step for event in events.Scalars("val/bits_per_byte")]
    assert len(validated) == 2
    for tag in tags:
        assert [event.step for event in events.Scalars(tag)] == validated
    assert sorted(path.name for path in (tmp_path / "run/evaluation").iterdir()) == ["step=2.json", "step=4.json"]
    bits = [event.value for event in events.Scalars("eval/stories/bits_per_byte")]
    assert bits[0] != bits[1]
    assert math.isclose(watch.best_model_score.item(), min(bits), rel_tol=1e-5)  # type: ignore[union-attr]


def test_only_the_end_is_evaluated_by_default(folder: Path, tmp_path: Path) -> None:
    fit(folder, tmp_path, harness(folder, {"stories": None}))
    assert [path.name for path in (tmp_path / "run/evaluation").iterdir()] == ["step=4.json"]
    assert len(scalars(tmp_path / "run")["eval/stories/bits_per_byte"]) == 1


def test_evaluation_at_the_end_can_be_disabled(folder: Path, tmp_path: Path) -> None:
    fit(folder, tmp_path, harness(folder, {"stories": None}, every_n_steps=3, at_end=False))
    assert [path.name for path in (tmp_path / "run/evaluation").iterdir()] == ["step=3.json"]


# Effects on training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_is_unchanged_by_evaluation(folder: Path, tmp_path: Path, precision: Any) -> None:
    def run(*callbacks: pl.Callback) -> tuple[list[Any], list[Tensor]]:
        recorder = Recorder()
        _, weights = fit(folder, tmp_path, FrozenPart(), *callbacks, recorder, precision=precision, logger=False)
        return recorder.steps, weights

    (plain, weights), (evaluated, same_weights) = run(), run(harness(folder, every_n_steps=1))
    assert evaluated == plain
    assert len(evaluated) == 4
    assert {True, False} == set(evaluated[0][2])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(weights, same_weights, strict=True))


def test_student_is_evaluated_in_the_precision_of_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watch(pl.Callback):
        """Starts watching after the passes that check the head."""

        def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
            monkeypatch.setattr(LlamaForCausalLM, "forward", watched)

    seen: set[Any] = set()
    forward = LlamaForCausalLM.forward

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        output = forward(self, *args, **options)
        seen.add((output.logits.dtype, self.training, torch.is_grad_enabled()))
        return output

    fit(folder, tmp_path, Watch(), harness(folder), precision="bf16-mixed", max_steps=1)
    assert seen == {(torch.bfloat16, False, False)}


def test_students_tokenizer_is_unchanged(folder: Path, tmp_path: Path) -> None:
    class Watch(pl.Callback):
        def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
            tokenizer = module.student_vocabulary.tokenizer
            self.state = (tokenizer.padding_side, tokenizer.pad_token, len(tokenizer))

    with_harness, plain = Watch(), Watch()
    fit(folder, tmp_path, plain, max_steps=1)
    fit(folder, tmp_path, harness(folder), with_harness, max_steps=1)
    assert with_harness.state == plain.state
