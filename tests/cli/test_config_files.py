"""Several configuration files become one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from xtoken_pl.cli.config_files import merge, merge_config_arguments


def test_merging_keeps_what_the_later_file_does_not_name() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "loss": {"class_path": "A", "init_args": {"k": 1}}}
    assert merge(base, {"a": {"y": [3]}, "loss": {"init_args": {"j": 2}}}) == {
        "a": {"x": 1, "y": [3]},
        "loss": {"class_path": "A", "init_args": {"k": 1, "j": 2}},
    }
    assert merge(base, {"loss": {"class_path": "B"}})["loss"] == {"class_path": "B"}


def test_a_key_with_a_plus_adds_to_a_list() -> None:
    assert merge({"a": {"b": [1]}}, {"a": {"b+": [2, 3]}}) == {"a": {"b": [1, 2, 3]}}


def test_an_addition_waits_for_the_list_of_a_later_file(tmp_path: Path) -> None:
    def merged(*contents: Any) -> Any:
        arguments: list[str] = []
        for number, content in enumerate(contents):
            (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(content))
            arguments += ["--config", str(tmp_path / f"{number}.yaml")]
        return yaml.safe_load(merge_config_arguments(arguments)[1])

    first, second, whole = {"a": {"b+": [1]}}, {"a": {"b+": [2]}}, {"a": {"b": [3]}}
    assert merged(first, whole, second) == {"a": {"b": [3, 1, 2]}}
    assert merged(first, second, whole) == {"a": {"b": [3, 1, 2]}}
    assert merged(first, second, {"a": {}}) == {"a": {"b": [1, 2]}}


def test_short_and_long_ways_to_write_a_class_are_merged() -> None:
    long = {"class_path": "A", "init_args": {"k": 1}}
    assert merge({"k": 0, "j": 2}, long) == {"class_path": "A", "init_args": {"k": 1, "j": 2}}
    assert merge(long, {"j": 2}) == {"class_path": "A", "init_args": {"k": 1, "j": 2}}
