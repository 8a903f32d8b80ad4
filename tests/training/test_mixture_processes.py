"""A mixture with a teacher for each domain: two processes compute what one does, and killed runs go on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from killed_runs import behind, finish, killed
from logged import scalars
from mixture_runs import Recorder, assert_same_scalars, data_of, total, train, write_workspace

from xtoken_pl import MultiTeacherDistillModule, ProjectionKL, Student, Teacher

pytestmark = pytest.mark.slow

TWO = ["--trainer.devices", "2", "--data.batch_size", "2"]
STREAM = ["--data.streaming", "true", "--data.shuffle_buffer", "3"]
STREAM += ["--trainer.max_steps", "12", "--trainer.max_epochs", "-1"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def whole(workspace: Path) -> Path:
    """The logs of a run of one process that nothing stopped."""
    return train(workspace, "whole")


def windows_of(workspace: Path, *, streaming: bool = False, **options: Any) -> list[Counter[str]]:
    """The windows of every batch of one process, by source."""
    recorder = Recorder()
    teachers = {name: Teacher(model=str(workspace / name), loss=ProjectionKL()) for name in ("split", "same")}
    module = MultiTeacherDistillModule(Student(model=str(workspace / "student")), teachers)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
        **options,
    )
    trainer.fit(module, data_of(workspace, 4, streaming=streaming, shuffle_buffer=3, seed=1))
    return recorder.windows


# Two processes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_have_the_losses_of_one(workspace: Path, whole: Path, strategy: str) -> None:
    finish(workspace, strategy, *TWO, "--trainer.strategy", strategy)
    assert_same_scalars(scalars(workspace / f"runs/{strategy}/version_0"), scalars(whole))


def test_some_process_has_no_window_of_a_teacher(workspace: Path) -> None:
    """Otherwise the test above would not test what it is for."""
    num_texts = {windows["texts"] for windows in windows_of(workspace, max_epochs=2)}
    # Of a batch of four windows, two for each process, one is of the teacher of texts, or all but one.
    assert {1, 3} & num_texts


# Interruptions --------------------------------------------------------------------------------------------------------

LOADERS: dict[str, list[str]] = {
    "stored": [],
    "stored-workers": ["--data.num_workers", "2"],
    "stored-processes": [*TWO, "--trainer.strategy", "ddp"],
    "streamed": STREAM,
    "streamed-workers": [*STREAM, "--data.num_workers", "2"],
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_run_that_is_killed_goes_on_to_the_last_bit(workspace: Path, loader: str) -> None:
    """Within the second epoch, with dropout."""
    arguments = ["--model.student.model", "dropping", *LOADERS[loader]]
    finish(workspace, loader, *arguments)
    killed(workspace, f"killed-{loader}", "optimizer_step", 10, *arguments)
    finish(workspace, f"killed-{loader}", *arguments, "--ckpt_path", "last", version=1)
    expected = step_scalars(workspace / f"runs/{loader}/version_0")
    resumed = step_scalars(workspace / f"runs/killed-{loader}/version_1")
    assert len(expected["train/loss"]) == 12
    assert resumed.keys() == expected.keys()
    for tag, values in behind(expected, 8).items():
        assert list(map(repr, resumed[tag])) == list(map(repr, values)), tag  # NaN, too


def step_scalars(run: Path) -> dict[str, list[float]]:
    """The scalars of every training step in TensorBoard."""
    return {tag: values for tag, values in scalars(run).items() if tag.startswith(("train/", "data/"))}


# Streams --------------------------------------------------------------------------------------------------------------


def test_every_prefix_of_a_stream_has_the_shares_of_its_sources_to_one_window(workspace: Path) -> None:
    batches = windows_of(workspace, max_steps=12, streaming=True)
    assert len(batches) == 12
    for num_batches in range(1, 13):
        found = total(batches[:num_batches])
        expected = {"texts": 2 * num_batches, "chats": num_batches, "tools": num_batches}
        assert all(abs(found[source] - count) <= 1 for source, count in expected.items())
