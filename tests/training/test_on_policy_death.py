"""Runs that are killed while the student writes go on with `--ckpt_path last` as if nothing had happened."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from killed_runs import behind, finish, fit
from resumed_runs import CONFIG, write_workspace

ROLLOUTS = {"share": 0.5, "max_new_tokens": 8, "prompt_bytes": 16, "num_samples": 2}
DYING = {"class_path": "dying_engine.DyingEngine", "init_args": {"step": 6}}  # one in which the student writes
TWO_PROCESSES = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "1"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_workspace(tmp_path_factory.mktemp("workspace"))
    config = copy.deepcopy(CONFIG)
    config["trainer"]["callbacks"][-1] = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"every_n_train_steps": 2, "save_last": True, "save_top_k": -1},
    }
    for name, engine in (("config", None), ("dying", DYING)):
        config["model"]["rollouts"] = {"class_path": "xtoken_pl.Rollouts", "init_args": {**ROLLOUTS, "engine": engine}}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return root


def last(workspace: Path, name: str, version: int) -> dict[str, Any]:
    path = workspace / f"runs/{name}/version_{version}/checkpoints/last.ckpt"
    return torch.load(path, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [[], ["--trainer.accumulate_grad_batches", "2"], TWO_PROCESSES], ids=["one", "accumulated", "two"]
)
def test_a_run_that_is_killed_while_the_student_writes_goes_on_to_the_last_bit(
    workspace: Path, arguments: list[str]
) -> None:
    name = f"run-{len(arguments)}"
    expected = finish(workspace, name, *arguments)
    assert fit(workspace, f"killed-{name}", *arguments, "--config", "dying.yaml") != 0, "the run was not killed"
    assert last(workspace, f"killed-{name}", 0)["global_step"] == 6
    resumed = finish(workspace, f"killed-{name}", *arguments, "--ckpt_path", "last", version=1)
    ours, theirs = last(workspace, f"killed-{name}", 1), last(workspace, name, 0)
    assert ours["global_step"] == theirs["global_step"] >= 8
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)
    num_before = {tag: len(values) - len(resumed[tag]) for tag, values in expected.items()}
    assert all(values == behind(expected, num_before[tag])[tag] for tag, values in resumed.items())
