"""The methods of LightningCLI that are overridden although they are not public still do what the overrides rely on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import Run

from xtoken_pl import DistillDataModule, MultiTeacherDistillModule
from xtoken_pl.cli.parts_cli import run_with_parts


def checkpoint_of(folder: Path) -> Path:
    return max(folder.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime)


def test_the_command_line_wins_over_hyperparameters_in_a_checkpoint(run: Run, tmp_path: Path) -> None:
    content = torch.load(checkpoint_of(run()), weights_only=True)
    hyperparameters = {"optimizer": {"learning_rate": 0.5}}
    torch.save(content | {"hyper_parameters": hyperparameters}, tmp_path / "edited.ckpt")
    options = ["--trainer.max_steps", "6", "--model.optimizer.learning_rate", "0.25"]
    resumed = torch.load(
        checkpoint_of(run("fit", "--ckpt_path", str(tmp_path / "edited.ckpt"), *options)), weights_only=True
    )
    assert resumed["global_step"] == 6
    assert resumed["xtoken_pl"]["identity"]["settings"]["learning_rate"] == 0.25


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the verb.

    Attributes:
        number: Number of something.
    """

    number: int = 1


def test_a_verb_gets_the_parts_of_a_run_and_its_own_options_without_a_trainer(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.chdir(workspace)
    no_such_devices = ["--trainer.accelerator", "cuda", "--trainer.devices", "4096"]
    arguments = ["inspect", "--config", "config.yaml", *no_such_devices, "--number", "3"]
    run_with_parts(lambda *parts: given.extend(parts), Options, arguments)
    module, data, trainer_settings, options = given
    assert isinstance(module, MultiTeacherDistillModule)
    assert isinstance(data, DistillDataModule)
    assert trainer_settings["devices"] == "4096"
    assert options == Options(number=3)
