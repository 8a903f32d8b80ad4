"""Suites say what they mean, and mistakes in them are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments import suites as suites_module
from experiments.suites import Lines, Suite, load_suites


@pytest.fixture
def write_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Suite]:
    monkeypatch.setattr(suites_module, "ROOT", tmp_path / "experiments")
    folder = tmp_path / "experiments" / "suites"
    folder.mkdir(parents=True)
    for name, content in {"base": {"a": 1, "b": {"c": 1, "d": 1}}, "extra": {"b": {"c": 2, "e": [2]}}}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))

    def write(runs: dict[str, Any], **settings: Any) -> Suite:
        content = {"title": "T", "seeds": [0, 1], "config": ["base.yaml"], "metrics": {"m": "M"}, "runs": runs}
        (folder / "some.yaml").write_text(yaml.safe_dump({**content, **settings}))
        return load_suites(["some"])["some"]

    return write


def test_a_run_has_what_its_suite_says_unless_it_says_otherwise(write_suite: Callable[..., Suite]) -> None:
    lines = [{"task": "letters", "number": 5, "random_share": 0.5}]
    own = {"seeds": [7], "lines": lines, "baseline": "", "config": {"b": {"d": 3}, "a": 3}, "configs": ["extra.yaml"]}
    own |= {"also": ["GOLD", "H-KL"]}
    shared = [{"task": "addition", "number": 9, "random_share": 0.1}]
    runs = write_suite({"ce": None, "own": own}, baseline="ce", lines=shared).runs
    assert (runs["ce"].seeds, runs["ce"].baseline, runs["ce"].title) == ((0, 1), "ce", "ce")
    assert runs["ce"].lines == (Lines("addition", 9, 0.1),)
    assert runs["ce"].config == {"a": 1, "b": {"c": 1, "d": 1}}
    assert (runs["own"].seeds, runs["own"].baseline) == ((7,), "")
    assert runs["own"].lines == (Lines("letters", 5, 0.5),)
    assert (runs["ce"].also, runs["own"].also) == ((), ("GOLD", "H-KL"))
    assert runs["own"].config == {"a": 3, "b": {"c": 2, "d": 3, "e": [2]}}  # its own over its files over the suite's


def test_variants_are_run_of_every_run_each_with_its_own_change(write_suite: Callable[..., Suite]) -> None:
    variants = {"low": {"b": {"c": 7}}, "high": {"b": {"c": 8}}}
    given = {"ce": None, "kd": {"title": "KD", "teacher": "D", "config": {"b": {"c": 5, "d": 6}}}}
    runs = write_suite(given, variants=variants).runs
    assert {name: (run.title, run.config["b"]) for name, run in runs.items()} == {
        "ce_low": ("ce, low", {"c": 7, "d": 1}),
        "ce_high": ("ce, high", {"c": 8, "d": 1}),
        "kd_low": ("KD, low", {"c": 7, "d": 6}),
        "kd_high": ("KD, high", {"c": 8, "d": 6}),
    }
    assert {run.teacher for run in runs.values()} == {"", "D"}


@pytest.mark.parametrize(
    ("runs", "settings", "message"),
    [
        ({"ce": {"baselin": "ce"}}, {}, r"some\.yaml: ce has no setting baselin"),
        ({"ce": None}, {"baselines": "ce"}, r"some\.yaml has no setting baselines; there are"),
        ({"ce": {"baseline": "cf"}}, {}, r"some\.yaml: the baseline of ce must be one of its runs, got 'cf'"),
    ],
)
def test_a_mistake_in_a_suite_is_named(
    write_suite: Callable[..., Suite], runs: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_suite(runs, **settings)


def test_an_unknown_suite_is_named() -> None:
    with pytest.raises(ValueError, match=r"one of addition, .*, got nothing, summs"):
        load_suites(["addition", "summs", "nothing"])
    assert list(load_suites(["words", "addition"])) == ["words", "addition"]
