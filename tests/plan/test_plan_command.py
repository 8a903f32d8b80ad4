"""The command `plan` needs only configurations, and suggests changes for a run that does not fit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from planned import write_models
from published_configs import write_configs

from xtoken_pl import Student
from xtoken_pl.cli import main
from xtoken_pl.plan.skeleton import Skeleton
from xtoken_pl.plan.terms import usable_bytes
from xtoken_pl.utilities.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


PAPER = ["configs/paper/base.yaml", "configs/paper/llama1b_from_phi4mini_llama3b.yaml"]


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the paper's configurations and its models' config.json, without weights."""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "configs").symlink_to(ROOT / "configs")
    write_configs(folder)
    return folder


Plan = Callable[..., str]


@pytest.fixture
def plan(paper: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    monkeypatch.chdir(paper)

    def plan(*arguments: str, configs: list[str] = PAPER) -> str:
        main(["plan", *(word for config in configs for word in ("--config", config)), *arguments])
        return capsys.readouterr().out

    return plan


def test_papers_best_run_is_planned_from_its_configs_alone(plan: Plan, paper: Path) -> None:
    """No GPU, weights or tokenizers are needed; parameter counts agree with the published ones."""
    printed = plan("--trainer.accelerator", "gpu", "--json_output", "plan.json")
    written = json.loads((paper / "plan.json").read_text())
    published = {"student": 1.24e9, "teacher phi": 3.84e9, "teacher llama": 3.21e9}
    assert written["parameters"] == {name: pytest.approx(count, rel=0.005) for name, count in published.items()}
    peak = written["moments"][written["peak_moment"]]
    assert sum(peak.values()) == written["peak_bytes"]
    assert peak["student: weights"] == pytest.approx(4 * 1.2358e9, rel=1e-3)
    assert peak["teacher phi: weights"] == pytest.approx(2 * 3.836e9, rel=1e-3)
    assert usable_bytes(80) == written["usable_bytes"]
    assert re.search(rf"fits: {written['peak_bytes'] / 1e9:.2f} of 84\.61 GB at the peak", printed)
    shown = re.search(r"^```text\n(1 GPU .*?)^```", (ROOT / "docs/scaling.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert shown[1] in printed
    smaller = plan("--trainer.accelerator", "gpu", "--gpu_memory", "40")
    needed = smaller.split("\nfits with ")[1]
    for change in ("activation_checkpointing: true", "batch_size: 2 ", "logits_memory: 0.5"):  # as the page says
        assert change in needed
    assert "activation_checkpointing: true saves 36.94 GB" in smaller
    assert "logits_memory: 0.5 saves 1.57 GB" in smaller
    with pytest.raises(UserError, match=r"plan\.json exists and is not overwritten"):
        plan("--json_output", "plan.json")


def test_wrong_input_is_named_before_models_are_built(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(*_: Any, **__: Any) -> Skeleton:
        raise AssertionError("a model was built")

    with monkeypatch.context() as patch:
        patch.setattr(Skeleton, "from_source", no_model)
        with pytest.raises(ValueError, match="gpu_memory must be > 0 GB, got 0"):
            plan("--gpu_memory", "0")
        with pytest.raises(UserError, match="a file is to be written"):
            plan("--json_output", str(tmp_path))
    with pytest.raises(ValueError, match="the model of the student must be a directory or a hub id with the config"):
        Skeleton.from_source(Student(model=str(tmp_path / "nowhere")), role="student")


def test_run_that_does_not_fit_gets_suggestions(plan: Plan, models: Path, paper: Path) -> None:
    config = {
        "model": {
            "student": {"model": str(models / "student")},
            "teachers": {"t": {"model": str(models / "teacher"), "loss": "xtoken_pl.HybridKL"}},
        },
        "data": {"train": {"path": "texts.jsonl"}, "batch_size": 256, "sequence_length": 512},
    }
    (paper / "tiny.yaml").write_text(yaml.safe_dump(config))
    printed = plan("--gpu_memory", "2", configs=["tiny.yaml"])
    assert "does not fit" in printed
    assert "model.teachers.t.cache: a directory" in printed
    of_a_stream = plan("--gpu_memory", "2", "--data.streaming", "true", configs=["tiny.yaml"])
    assert "does not fit" in of_a_stream
    assert ".cache: a directory" not in of_a_stream  # windows of a stream have no index
    assert re.search(r"data\.batch_size: 128 \(and trainer\.accumulate_grad_batches x 2\) saves [0-9.]+ GB", printed)
    assert re.search(r"fits with [0-2]\.\d\d GB after:", printed)
