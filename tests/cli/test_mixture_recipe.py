"""The recipe of a mixture names what exists, and trains two steps as it is, with small models and local files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from configurations import ROOT, SMALL_TRAINER, command_of
from logged import scalars
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl.cli import main

RECIPE = ROOT / "configs/recipes/math_code_web.yaml"
SOURCES = ("math", "code", "web")
#: Teachers of each source.
TEACHING = {"math": {"math", "general"}, "code": {"coder"}, "web": {"general"}}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        main([*command_of(RECIPE), "--print_config"])
    parsed: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return {name: parsed[name].get("init_args", parsed[name]) for name in ("model", "data", "trainer")}


def teachers_of(source: dict[str, Any]) -> set[str]:
    return set(source["teachers"] or [name for name, alpha in source["alphas"].items() if alpha])


def test_sources_and_teachers_name_each_other(parsed: dict[str, Any]) -> None:
    data, teachers = parsed["data"], parsed["model"]["teachers"].keys()
    for split in ("train", "val"):
        assert list(data[split]) == list(SOURCES)
        for source in data[split].values():
            assert (source["teachers"] is None) != (source["alphas"] is None)
            assert {*(source["teachers"] or []), *(source["alphas"] or {})} <= teachers
        assert {name: teachers_of(source) for name, source in data[split].items()} == TEACHING
    assert set().union(*TEACHING.values()) == teachers
    # With an entry for every teacher, no default of alpha hides in a source.
    assert data["train"]["math"]["alphas"].keys() == teachers


def test_weights_are_shares_of_training_windows(parsed: dict[str, Any]) -> None:
    weights = [source["weight"] for source in parsed["data"]["train"].values()]
    assert all(weight > 0 for weight in weights)
    assert sum(weights) == pytest.approx(1)
    assert all(source["weight"] is None for source in parsed["data"]["val"].values())


def test_recipe_has_the_papers_size(parsed: dict[str, Any]) -> None:
    base = yaml.safe_load((ROOT / "configs/paper/base.yaml").read_text())
    assert parsed["model"]["student"]["model"] == base["model"]["student"]["model"]
    for name in ("sequence_length", "batch_size", "streaming"):
        assert parsed["data"][name] == base["data"][name]
    for name in ("max_steps", "accumulate_grad_batches", "precision", "val_check_interval"):
        assert parsed["trainer"][name] == base["trainer"][name]


def write_stand_ins(folder: Path, config: dict[str, Any]) -> None:
    """Small models at the hub's names, relative to the working folder, and a file for every source."""
    write_model(folder / config["model"]["student"]["model"], packing_tokenizer())
    for seed, teacher in enumerate(config["model"]["teachers"].values(), start=1):
        write_model(folder / teacher["model"], splitting_tokenizer(), seed=seed)
    for split in ("train", "val"):
        for index, (name, source) in enumerate(config["data"][split].items()):
            column = source.get("text_field", "text")
            lines = [json.dumps({column: text[:150]}) + "\n" for text in TEXTS[index::3]]
            (folder / f"{split}-{name}.jsonl").write_text("".join(lines))


def small(split: str) -> dict[str, Any]:
    local = {"name": None, "split": "train"}
    return {name: {"path": f"{split}-{name}.jsonl", **local} for name in SOURCES}


def test_recipe_trains_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_stand_ins(tmp_path, yaml.safe_load(RECIPE.read_text()))
    overlay = {
        "data": {
            "train": small("train"),
            "val": small("val"),
            "sequence_length": 48,
            "batch_size": 10,
            "shuffle_buffer": 4,
            "num_workers": 0,
        },
        "trainer": SMALL_TRAINER,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(overlay))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    main([*command_of(RECIPE), "--config", "small.yaml"])
    tags = scalars(tmp_path / "runs/recipes/math_code_web/version_0")
    assert all(math.isfinite(value) for tag in ("train/loss", "train/ce", "train/kd") for value in tags[tag])
    shares = [tags[f"data/share/{source}"] for source in SOURCES]
    assert [sum(step) for step in zip(*shares, strict=True)] == pytest.approx([1, 1])
    for source, share in zip(SOURCES, shares, strict=True):
        assert all(0.1 < value < 0.6 for value in share)  # of the tokens, while the weights are of windows
        assert all(math.isfinite(value) for value in tags[f"val/{source}/bits_per_byte"])
        taught = {tag.rsplit("/", 1)[1] for tag in tags if tag.startswith(f"val/{source}/kd/")}
        assert taught == TEACHING[source]
    for teacher in ("math", "coder", "general"):
        assert all(value > 0 for value in tags[f"train/kd/{teacher}"])
    assert (tmp_path / "runs/recipes/math_code_web/version_0/export/model.safetensors").exists()
