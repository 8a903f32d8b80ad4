"""One source or several by name, from files and options: parsed, merged, written and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from shown_code import printed_config

from xtoken_pl.cli import main
from xtoken_pl.utilities.errors import UsageError

MODEL = {"student": {"model": "a"}, "teachers": {"one": {"model": "b"}, "two": {"model": "c"}}}
ONE = {"model": MODEL, "data": {"train": {"path": "x.jsonl", "alphas": {"one": 0.5}}}}
NAMED = {
    "model": MODEL,
    "data": {
        "train": {
            "math": {"path": "m.jsonl", "weight": 2, "teachers": ["one"]},
            "code": {"path": "c.jsonl", "weight": 1, "alphas": {"one": 0.5, "two": 1}},
        },
        "val": {"path": "v.jsonl"},
    },
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, content in {"one": ONE, "named": NAMED}.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def data_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The data section of the configuration that a run would store, without what is not set."""
    printed = yaml.safe_load(printed_config(["fit", *arguments, "--print_config"], capsys))["data"]["init_args"]
    return {split: given_of(printed[split]) for split in ("train", "val", "test") if printed[split] is not None}


def given_of(value: Any) -> Any:
    if "path" not in value:
        return {name: given_of(source) for name, source in value.items()}
    names = ("path", "weight", "teachers", "alphas")
    return {name: value[name] for name in names if value[name] is not None}


def test_both_kinds_are_parsed_and_written_as_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in {"one": ONE, "named": NAMED}.items():
        assert data_of(capsys, "--config", f"{name}.yaml") == content["data"]
        printed = printed_config(["fit", "--config", f"{name}.yaml", "--print_config"], capsys)
        Path("saved.yaml").write_text(printed)
        assert printed_config(["fit", "--config", "saved.yaml", "--print_config"], capsys) == printed


@pytest.mark.parametrize(
    ("base", "options", "split", "expected"),
    [
        ("one", ["--data.train.path", "y"], "train", {"path": "y", "alphas": {"one": 0.5}}),
        ("one", ["--data.train.alphas.two", "2"], "train", {"path": "x.jsonl", "alphas": {"one": 0.5, "two": 2}}),
        ("one", ["--data.val.path", "y"], "val", {"path": "y"}),
        ("one", ["--data.val.new.path", "y"], "val", {"new": {"path": "y"}}),
        (
            "named",
            ["--data.val.new.path", "y", "--data.val.b.path", "z"],
            "val",
            {"new": {"path": "y"}, "b": {"path": "z"}},
        ),
        ("one", ["--data.val.new", "{path: y, alphas: {two: 2}}"], "val", {"new": {"path": "y", "alphas": {"two": 2}}}),
        ("named", ["--data.train", "{a: {path: y}, b: {path: z}}"], "train", {"a": {"path": "y"}, "b": {"path": "z"}}),
    ],
    ids=["path", "alpha", "other split", "a first name", "names over one", "a whole source", "all of them"],
)
def test_options_change_one_source(
    base: str, options: list[str], split: str, expected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data_of(capsys, "--config", f"{base}.yaml", *options)[split] == expected


def test_options_change_one_of_the_named_sources(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.train.math.weight", "7", "--data.train.code.alphas.two", "0", "--data.train.web.path", "w"]
    expected = yaml.safe_load(yaml.safe_dump(NAMED["data"]))
    expected["train"]["math"]["weight"] = 7
    expected["train"]["code"]["alphas"]["two"] = 0
    expected["train"]["web"] = {"path": "w"}
    assert data_of(capsys, "--config", "named.yaml", *options) == expected


def test_files_are_merged_by_name_and_another_kind_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    Path("more.yaml").write_text("data: {train: {math: {weight: 5}, web: {path: w.jsonl, weight: 1}}}")
    merged = data_of(capsys, "--config", "named.yaml", "--config", "more.yaml")["train"]
    assert merged["math"] == {"path": "m.jsonl", "weight": 5, "teachers": ["one"]}
    assert merged.keys() == {"math", "code", "web"}
    for first, second in (("one", "named"), ("named", "one")):
        found = data_of(capsys, "--config", f"{first}.yaml", "--config", f"{second}.yaml")
        assert found["train"] == {"one": ONE, "named": NAMED}[second]["data"]["train"]


def test_teachers_whose_names_are_options_of_a_source_are_still_merged(capsys: pytest.CaptureFixture[str]) -> None:
    Path("split.yaml").write_text("model: {teachers: {split: {model: d, revision: v2}}}")
    arguments = ["fit", "--config", "one.yaml", "--config", "split.yaml", "--print_config"]
    printed = yaml.safe_load(printed_config(arguments, capsys))
    assert printed["model"]["init_args"]["teachers"].keys() == {"one", "two", "split"}


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        ("{val: {pth: x}}", [], "data.val.pth in extra.yaml is not an option; did you mean path?"),
        ("{train: {math: {pth: x}}}", [], "data.train.math.pth in extra.yaml is not an option; did you mean path?"),
        (
            "{train: {code: {path: x, wieght: 3}}}",
            [],
            "data.train.code.wieght in extra.yaml is not an option; did you mean weight?",
        ),
        (
            "{train: {code: {weight: abc}}}",
            [],
            "data.train.code.weight in extra.yaml must be a number or null, got 'abc'",
        ),
        (
            "{train: {code: c.jsonl}}",
            [],
            "data.train.code in extra.yaml must be a mapping of options, got 'c.jsonl'; did you mean {path: c.jsonl}?",
        ),
        (
            "{train: c.jsonl}",
            [],
            "data.train in extra.yaml must be a mapping of options, got 'c.jsonl'; did you mean {path: c.jsonl}?",
        ),
        (
            "{train: {math: {alphas: {one: abc, two: 1}}}}",
            [],
            "data.train.math.alphas in extra.yaml must be a mapping to numbers or null, got {'one': 'abc', 'two': 1}",
        ),
        (
            "{train: {code: null}}",
            [],
            "source 'code' must be a mapping of options, got null; weight: 0 leaves a source out",
        ),
        (
            "{train: {path: {path: x}}}",
            [],
            "a source cannot be called 'path', which is an option of a source; rename it",
        ),
        (
            "{train: {path: x, web: {path: y}}}",
            [],
            "a split holds the options of one source, or several sources by name, got path beside web: {path: ...}; "
            "give the options a name, too, or remove one of the two",
        ),
        ("{train: null}", [], "data.train is required, not given; set it in a file for --config, or as an option"),
        (
            "{}",
            ["--data.train.mth.weight", "7"],
            "data.train.mth.path is required, not given; set it in a file for --config, or as an option; did you mean "
            "math?",
        ),
        ("{}", ["--data.train.math.wieght", "7"], "--data.train.math.wieght is not an option; did you mean weight?"),
        ("{}", ["--data.val.pth", "7"], "--data.val.pth is not an option; did you mean path?"),
        ("{}", ["--data.train.math.weight", "[1]"], "--data.train.math.weight must be a number or null, got [1]"),
    ],
)
def test_mistakes_are_named_with_their_source(content: str, options: list[str], expected: str) -> None:
    Path("extra.yaml").write_text(f"data: {content}")
    with pytest.raises(UsageError) as error:
        main(["fit", "--config", "named.yaml", "--config", "extra.yaml", *options])
    assert str(error.value) == expected


def test_a_named_source_needs_a_path() -> None:
    Path("extra.yaml").write_text("data: {train: {web: {weight: 3}}}")
    with pytest.raises(UsageError, match=r"data\.train\.web\.path is required, not given; set it in a file"):
        main(["fit", "--config", "named.yaml", "--config", "extra.yaml"])
