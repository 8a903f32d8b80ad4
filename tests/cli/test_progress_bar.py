"""The progress bar of ``fit`` counts optimizer steps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from small_run import small_run, write_models, write_texts

from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.cli import main


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("progress")
    write_models(folder)
    write_texts(folder, length=400)
    return folder


def shown(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str, **trainer: Any) -> str:
    """What a run prints on stdout."""
    config = small_run()
    del config["trainer"]["enable_progress_bar"]
    config["trainer"] |= trainer
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", "run.yaml", *arguments])
    return capsys.readouterr().out


def test_steps_are_counted_up_to_the_last(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(workspace, capsys, max_steps=3, accumulate_grad_batches=2)
    assert [f"step {step}/3" in said for step in range(5)] == [True, True, True, True, False]
    assert "poch" not in said.partition("trained")[0]


def test_epochs_are_counted_where_a_run_has_them(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(workspace, capsys, max_steps=-1, max_epochs=2, limit_train_batches=3)
    assert "epoch 1/2, step 3/6" in said
    assert "epoch 2/2, step 6/6" in said


def test_a_run_that_resumes_within_an_epoch_begins_at_its_step(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1, "save_last": True}}
    options = {"enable_checkpointing": True, "callbacks": [save]}
    shown(workspace, capsys, max_steps=2, **options)
    lines = re.split(r"[\r\n]", shown(workspace, capsys, "--ckpt_path", "last", max_steps=3, **options))
    counted = [line for line in lines if "step " in line and "|" in line]
    assert counted
    assert all(line.startswith(("step 2/3", "step 3/3")) for line in counted)


def test_a_stream_shows_its_steps(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = ("--data.streaming", "true", "--data.val", "null")
    assert "step 2/2" in shown(workspace, capsys, *stream, max_steps=2)


class WithoutSchedule(MultiTeacherDistillModule):
    """Needs no number of steps."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopAfterOneStep(pl.Callback):
    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = True


def test_a_total_that_is_not_known_is_a_question_mark(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    endless = {"max_steps": -1, "max_epochs": -1, "callbacks": [{"class_path": f"{__name__}.StopAfterOneStep"}]}
    said = shown(workspace, capsys, "--model", f"{__name__}.WithoutSchedule", **endless)
    assert "step 1/?" in said


def test_it_is_left_out_when_switched_off(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "step 1/" not in shown(workspace, capsys, enable_progress_bar=False)


def test_a_bar_of_the_user_takes_its_place(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(workspace, capsys, callbacks=[{"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"}])
    assert "Epoch 0" in said
    assert "step 1/" not in said
