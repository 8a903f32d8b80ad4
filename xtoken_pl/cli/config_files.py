"""Merges several ``--config`` files into one.

With jsonargparse alone, ``teachers`` of the second file would replace those of the first; here mappings are merged key
by key, so that a file can add a teacher, or change one of its values.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from xtoken_pl.cli.source_kinds import SPLITS, are_other_kinds
from xtoken_pl.utilities.errors import UserError


def config_paths(arguments: list[str]) -> list[str]:
    """Paths given with ``--config``, in order."""
    # A merged configuration is not a path: the processes of a run are started with one.
    return [path for path in split_option(arguments, "--config", "-c")[0] if "\n" not in path]


def split_option(arguments: list[str], *names: str) -> tuple[list[str], list[str]]:
    """Values of an option that is written ``NAME VALUE`` or ``NAME=VALUE``, and all other arguments."""
    values: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in names:
            values.append(value if equals else next(rest, ""))
        else:
            others.append(argument)
    return values, others


def merge_config_arguments(arguments: list[str]) -> list[str]:
    """Puts ``--config`` before all other options, and replaces two or more files by one with the merged content.

    Later files take precedence over earlier ones, and options over files, in whatever order they are given:
    jsonargparse would silently drop the value of an option before ``--config``. A single file is not replaced, but it
    is read, so that errors name it.

    Args:
        arguments: The verb and its options.

    Raises:
        UserError: If a file does not exist, or is not a YAML mapping.
    """
    paths = config_paths(arguments)
    contents = [read_config(path) for path in paths]
    if not contents:
        return arguments
    only = paths[0] if len(paths) == 1 else yaml.safe_dump(_settled(reduce(merge, contents)), sort_keys=False)
    first = 0 if arguments[0].startswith("-") else 1  # behind the verb
    return [*arguments[:first], "--config", only, *split_option(arguments[first:], "--config", "-c")[1]]


def merge(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Merges ``other`` into ``base``: mappings key by key; other values, and another ``class_path``, replace the old.

    A key that ends in ``+`` adds to a list of an earlier or of a later file: ``callbacks+: [...]``.

    A class may be given as ``class_path`` and ``init_args``, or as its arguments alone; the two forms can be merged.
    Named sources replace a single source of texts, and a single source replaces named ones.
    """
    if _names_a_class(base) != _names_a_class(other):
        base, other = (side if _names_a_class(side) else {"init_args": side} for side in (base, other))
    if {"class_path"} <= base.keys() & other.keys() and base["class_path"] != other["class_path"]:
        return other
    merged = dict(base)
    for key, value in other.items():
        before = merged.get(key)
        if key.endswith("+") and isinstance(value, list):
            # Without a list to add to, the addition waits for a later file.
            target = key[:-1] if key[:-1] in merged else key
            merged[target] = [*(merged.get(target) or []), *value]
        elif isinstance(value, list) and f"{key}+" in merged:
            merged[key] = [*value, *merged.pop(f"{key}+")]
        else:
            is_other_kind = key in SPLITS and are_other_kinds(before, value)
            are_merged = isinstance(before, dict) and isinstance(value, dict) and not is_other_kind
            merged[key] = merge(before, value) if are_merged else value  # type: ignore[arg-type]
    return merged


def _settled(mapping: dict[str, Any]) -> dict[str, Any]:
    """Turns additions to a list that no file defines into that list."""
    return {
        key[:-1] if key.endswith("+") and isinstance(value, list) else key: (
            _settled(value) if isinstance(value, dict) else value
        )
        for key, value in mapping.items()
    }


def _names_a_class(mapping: dict[str, Any]) -> bool:
    return "class_path" in mapping or "init_args" in mapping


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys; YAML's own loader silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if key in lines:
                where = "an option, or the file that it names," if self.name.startswith("<") else repr(self.name)
                raise UserError(
                    f"a key must be given once, but {where} has {key!r} in lines {lines[key]} and {line}; "
                    "rename or remove one"
                )
            lines[key] = line
        return super().construct_mapping(node, deep)


def refuse_duplicate_keys() -> None:
    """Makes jsonargparse refuse duplicate keys in options (``--data '{...}'``) and in the files that they name."""
    load = get_loader("yaml")

    def load_unique(text: str) -> Any:
        value = load(text)
        if isinstance(value, dict | list):
            yaml.load(text, Loader=_Loader)
        return value

    set_loader("yaml", load_unique, (yaml.YAMLError,))


def read_config(path: str) -> dict[str, Any]:
    """Reads a configuration file.

    Raises:
        UserError: If it does not exist, is not a YAML mapping, or has duplicate keys.
    """
    if not path:
        raise UserError("--config must be a YAML file, got nothing; write --config FILE")
    if not Path(path).is_file():
        raise UserError(f"--config must be a YAML file, but there is none at {path!r}; check the path")
    try:
        with Path(path).open(encoding="utf-8") as file:
            content = yaml.load(file, Loader=_Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"--config must be YAML, but {path!r} is not; it may be truncated, or another file. Reason: {error}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"--config must be a YAML mapping, but {path!r} holds {type(content).__name__}; give another file"
        )
    return content
