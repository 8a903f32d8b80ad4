"""Runs that are killed go on with `--ckpt_path last` as if nothing had happened; real processes throughout."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from killed_runs import behind, finish, killed
from logged import train_scalars
from resumed_runs import CONFIG, write_workspace
from sudden_death import MOMENTS

from xtoken_pl.cli import main

TWO_PROCESSES = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "1"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_workspace(tmp_path_factory.mktemp("workspace"))
    checkpoints = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"every_n_train_steps": 2, "save_last": True},
    }
    config = copy.deepcopy(CONFIG)
    config["trainer"]["callbacks"][-1] = checkpoints
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


@pytest.fixture(scope="module")
def whole(workspace: Path) -> dict[str, list[float]]:
    """Of a run that nothing stopped, in this process, which is quicker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        main(["fit", "--config", "config.yaml"])
    return train_scalars(workspace / "runs/whole/version_0")


@pytest.mark.slow
def test_a_run_that_is_killed_within_a_checkpoint_write_goes_on_from_the_one_before(
    workspace: Path, whole: dict[str, list[float]]
) -> None:
    killed(workspace, "write", "write", 10)
    folder = workspace / "runs/write/version_0/checkpoints"
    assert [path.name for path in folder.glob(".*.part")], "it was not killed within a write"
    resumed = finish(workspace, "write", "--ckpt_path", "last", version=1)
    assert resumed == behind(whole, 8)
    assert "step 8" in (workspace / "write.log").read_text()


def random_deaths() -> list[tuple[str, int, int]]:
    """Moments, steps, and numbers of workers."""
    chance = random.Random(0)
    deaths = []
    for moment in chance.sample(MOMENTS[:-1], 4):
        # A validation comes behind every third batch of an epoch of seven.
        step = chance.choice([3, 6, 10, 13] if moment == "validation" else range(3, 15))
        deaths.append((moment, step, 2 * (len(deaths) % 2)))
    return deaths


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "step", "workers"), random_deaths())
def test_a_run_that_is_killed_anywhere_goes_on_as_if_it_had_not_been(
    workspace: Path, whole: dict[str, list[float]], moment: str, step: int, workers: int
) -> None:
    loader = ["--data.num_workers", str(workers)]
    killed(workspace, moment, moment, step, *loader)
    resumed = finish(workspace, moment, *loader, "--ckpt_path", "last", version=1)
    last_saved = (step if moment == "validation" else step - 1) // 2 * 2
    assert resumed == behind(whole, last_saved)


def sharded(workspace: Path, name: str, *, distributed: bool) -> list[str]:
    """Arguments of a run of two sharded processes; a distributed checkpoint is a folder that both write to."""
    config: dict[str, Any] = yaml.safe_load((workspace / "config.yaml").read_text())
    options = {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": True}
    long_form = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", "init_args": options}
    config["trainer"] |= {"strategy": long_form if distributed else "fsdp2", "devices": 2}
    config["trainer"]["callbacks"][-1]["init_args"] = {"every_n_train_steps": 2, "save_top_k": -1}
    config["data"]["batch_size"] = 1
    (workspace / f"{name}-base.yaml").write_text(yaml.safe_dump(config))
    return ["--config", f"{name}-base.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("distributed", [False, True], ids=["file", "folder"])
def test_two_sharded_processes_go_on_to_the_last_bit(workspace: Path, distributed: bool) -> None:
    name = f"sharded-{distributed}"
    arguments = sharded(workspace, name, distributed=distributed)
    expected = finish(workspace, name, *arguments)
    killed(workspace, f"killed-{name}", "optimizer_step", 10, *arguments)
    resumed = finish(workspace, f"killed-{name}", *arguments, "--ckpt_path", "last", version=1)
    assert resumed == behind(expected, 8)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_go_on_as_two_to_the_last_bit(workspace: Path, rank: int) -> None:
    expected = finish(workspace, f"two-{rank}", *TWO_PROCESSES)
    killed(workspace, f"killed-two-{rank}", "optimizer_step", 10, *TWO_PROCESSES, rank=rank)
    resumed = finish(workspace, f"killed-two-{rank}", *TWO_PROCESSES, "--ckpt_path", "last", version=1)
    assert resumed == behind(expected, 8)


@pytest.mark.slow
def test_two_processes_go_on_as_one(workspace: Path) -> None:
    plain = ["--model.student.model", "plain"]  # without dropout: one process cannot draw what two would have drawn
    expected = finish(workspace, "plain", *plain)
    killed(workspace, "killed-plain", "optimizer_step", 10, *plain, *TWO_PROCESSES)
    resumed = finish(workspace, "killed-plain", *plain, "--ckpt_path", "last", version=1)
    for tag, values in behind(expected, 8).items():
        assert resumed[tag] == pytest.approx(values, rel=1e-5, abs=1e-6), tag


@pytest.mark.slow
@pytest.mark.parametrize("processes", [["--data.num_workers", "2"], TWO_PROCESSES], ids=["one with two workers", "two"])
def test_a_stream_goes_on_to_the_last_bit(workspace: Path, processes: list[str]) -> None:
    name = f"stream-{len(processes)}"
    stream = ["--data.streaming", "true", "--data.shuffle_buffer", "4", *processes]
    stream += ["--trainer.max_steps", "14", "--trainer.max_epochs", "-1"]
    expected = finish(workspace, name, *stream)
    killed(workspace, f"killed-{name}", "optimizer_step", 10, *stream)
    resumed = finish(workspace, f"killed-{name}", *stream, "--ckpt_path", "last", version=1)
    assert resumed == behind(expected, 8)
