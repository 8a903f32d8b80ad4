"""The result of an optimizer step does not depend on how its windows are cut into batches, nor on interruptions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from accumulated_runs import Cut, Recorder, fit, parameters, write_models_and_texts
from lightning.pytorch.loggers import Logger
from resumed_runs import Interrupting
from started_helpers import run_helper

from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.callbacks import DynamicLossScaling
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accumulation")
    write_models_and_texts(folder)
    return folder


@pytest.fixture(scope="module")
def unsplit(folder: Path) -> Callable[..., tuple[MultiTeacherDistillModule, Recorder]]:
    """Twenty steps of so many windows at once, computed when they are asked for."""
    return cache(lambda num_windows, dtype: fit(folder, (num_windows, 1), dtype=dtype))


def tolerance(dtype: str) -> dict[str, float]:
    return {"rtol": 0, "atol": 1e-5 if dtype == "float32" else 1e-10}


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("cut", "dtype"),
    [
        ((4, 2), "float64"),
        ((1, 8), "float64"),
        slow((1, 8), "float32"),
        *(slow(cut, dtype) for cut in ((16, 2), (4, 8), (1, 32)) for dtype in ("float64", "float32")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[1]} x {value[0]}",
)
def test_losses_and_parameters_do_not_depend_on_the_cut(folder: Path, unsplit: Any, cut: Cut, dtype: str) -> None:
    whole, expected = unsplit(cut[0] * cut[1], dtype)
    split, found = fit(folder, cut, dtype=dtype)
    assert split.global_step == whole.global_step == 20
    assert expected.without_span == 0
    assert found.without_span > 0 or cut[0] > 1
    torch.testing.assert_close(found.steps, expected.steps, **tolerance(dtype))
    torch.testing.assert_close(parameters(split), parameters(whole), **tolerance(dtype))
    assert {"train/kd/same", "train/alpha/split", "train/spans_per_token/same"} < expected.steps[0].keys()
    assert expected.steps[-1]["train/loss"] < expected.steps[0]["train/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_losses_and_parameters_do_not_depend_on_the_processes_that_share_a_cut_step(
    folder: Path, unsplit: Any, strategy: str
) -> None:
    run_helper("accumulated_runs", strategy, folder)
    for dtype in ("float64", "float32"):
        whole, expected = unsplit(8, dtype)
        found = torch.load(folder / f"{strategy}-{dtype}.pt")
        assert len(found["steps"]) == 20
        torch.testing.assert_close(found["steps"], expected.steps, **tolerance(dtype))
        torch.testing.assert_close(found["parameters"], parameters(whole), **tolerance(dtype))


class Noted(Logger):
    """Notes what is logged, and at which step."""

    name, version = "noted", 0

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[int, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "train/loss" in metrics:
            assert step is not None
            self.losses[step] = metrics["train/loss"]

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
def test_a_run_that_is_resumed_within_a_step_computes_what_it_would_have_computed(
    folder: Path, tmp_path: Path, streaming: bool
) -> None:
    # Epochs of a step of four batches, and a step of the two that are left.
    options: dict[str, Any] = {"limit_train_batches": 6, "max_epochs": 2, "max_steps": 4}
    options |= {"student": "with_dropout", "streaming": streaming}

    def run(*callbacks: pl.Callback, ckpt_path: Path | None = None) -> tuple[Any, Recorder, dict[int, float]]:
        logger = Noted()
        module, steps = fit(
            folder, (2, 4), DynamicLossScaling(), *callbacks, ckpt_path=ckpt_path, logger=logger, **options
        )
        return module, steps, logger.losses

    interrupting = Interrupting(tmp_path)
    whole, expected, logged = run(interrupting)
    assert list(logged) == [0, 1, 2, 3]
    for place, num_steps in ((1, 0), (3, 1), (4, 1), (5, 2), (8, 2), (10, 3)):
        resumed, found, logged_again = run(ckpt_path=interrupting.saved[place])
        assert resumed.global_step == whole.global_step == 4
        torch.testing.assert_close(found.steps, expected.steps[num_steps:], rtol=0, atol=0)
        torch.testing.assert_close(parameters(resumed), parameters(whole), rtol=0, atol=0)
        assert logged_again == {step: loss for step, loss in logged.items() if step >= num_steps}


@pytest.mark.parametrize("num_batches", [2, 6], ids=["first step", "later step"])
def test_a_run_that_stopped_within_a_step_resumes_with_that_step(
    folder: Path, tmp_path: Path, num_batches: int
) -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(
            self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            trainer.should_stop = batch_idx + 1 == num_batches

        def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "stopped.ckpt")

    whole, expected = fit(folder, (2, 4), max_steps=4)
    _, before = fit(folder, (2, 4), Stop(), max_steps=4)
    resumed, after = fit(folder, (2, 4), max_steps=4, ckpt_path=tmp_path / "stopped.ckpt")
    assert len(before.steps) == num_batches // 4
    torch.testing.assert_close(before.steps + after.steps, expected.steps, rtol=0, atol=0)
    torch.testing.assert_close(parameters(resumed), parameters(whole), rtol=0, atol=0)


def test_resuming_within_a_step_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    interrupting = Interrupting(tmp_path)
    fit(folder, (2, 4), interrupting, max_steps=1)
    source = {"max_steps": 2, "ckpt_path": interrupting.saved[-1]}
    with pytest.raises(UserError, match=r"with trainer.accumulate_grad_batches=3 the checkpoint is 1 batches into one"):
        fit(folder, (2, 4), **source, accumulate_grad_batches=3)
    resumed, _ = fit(folder, (2, 4), **source, accumulate_grad_batches=2)
    assert resumed.global_step == 2


def test_batches_without_the_counts_of_their_step_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"batch 1 of 1 does not end a step of the trainer \(.*=4\); use DistillData"):
        fit(folder, (2, 4), WithoutCounts())


class WithoutCounts(pl.Callback):
    """Removes the counts."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        batch.step = None


def test_an_epoch_shorter_than_a_step_is_said(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"an epoch of 2 batches has fewer than trainer.accumulate_grad_batches=4"):
        module, _ = fit(folder, (2, 4), limit_train_batches=2, max_epochs=1)
    assert module.global_step == 1
