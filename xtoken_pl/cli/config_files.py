"""Several ``--config`` files become one.

jsonargparse lets the second file's ``teachers`` replace the first's as a whole; here dictionaries are merged key by
key, so that a file may add a teacher, or change one value of it.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from xtoken_pl.utilities.errors import UserError


def config_paths(arguments: list[str]) -> list[str]:
    """The files given with ``--config``, in order."""
    return _split(arguments)[0]


def _split(arguments: list[str]) -> tuple[list[str], list[str], int]:
    """The files given with ``--config``, the other arguments, and where among them the first file stood."""
    paths: list[str] = []
    others: list[str] = []
    position = 0
    rest = iter(arguments)
    for argument in rest:
        if argument not in ("--config", "-c") and not argument.startswith("--config="):
            others.append(argument)
            continue
        position = position if paths else len(others)
        paths.append(argument.partition("=")[2] if "=" in argument else next(rest, ""))
    # Content that was merged before is no file: processes of one run are started with it.
    return [path for path in paths if "\n" not in path], others, position


def merge_config_arguments(arguments: list[str]) -> list[str]:
    """Replaces two or more ``--config FILE`` by one with the merged content; the later file wins.

    A single file is not replaced, but read, so that an error names it.

    Raises:
        UserError: If a file does not exist.
        UserError: If a file is no YAML mapping.
    """
    paths, others, position = _split(arguments)
    contents = [read_config(path) for path in paths]
    if len(contents) < 2:
        return arguments
    merged = _settled(reduce(merge, contents))
    return [*others[:position], "--config", yaml.safe_dump(merged, sort_keys=False), *others[position:]]


def merge(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """``other`` over ``base``: mappings key by key, everything else replaced. Another ``class_path`` starts afresh.

    A key that ends in ``+`` adds to a list, that of an earlier file or of a later one: ``callbacks+: [...]``.

    A class may be written with ``class_path`` and ``init_args``, or short, as its arguments alone; both mix.
    """
    if _names_a_class(base) != _names_a_class(other):
        base, other = (side if _names_a_class(side) else {"init_args": side} for side in (base, other))
    if {"class_path"} <= base.keys() & other.keys() and base["class_path"] != other["class_path"]:
        return other
    merged = dict(base)
    for key, value in other.items():
        before = merged.get(key)
        if key.endswith("+") and isinstance(value, list):
            # Without a list to add to, the addition is kept for that of a later file.
            target = key[:-1] if key[:-1] in merged else key
            merged[target] = [*(merged.get(target) or []), *value]
        elif isinstance(value, list) and f"{key}+" in merged:
            merged[key] = [*value, *merged.pop(f"{key}+")]
        else:
            merged[key] = merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _settled(mapping: dict[str, Any]) -> dict[str, Any]:
    """With additions to a list that no file has as that list."""
    return {
        key[:-1] if key.endswith("+") and isinstance(value, list) else key: (
            _settled(value) if isinstance(value, dict) else value
        )
        for key, value in mapping.items()
    }


def _names_a_class(mapping: dict[str, Any]) -> bool:
    return "class_path" in mapping or "init_args" in mapping


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's own loader takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if key in lines:
                raise _TwiceError(key, lines[key], line)
            lines[key] = line
        return super().construct_mapping(node, deep)


class _TwiceError(Exception):
    """A key, and the lines where it is given."""


def read_config(path: str) -> dict[str, Any]:
    """The content of one configuration file.

    Raises:
        UserError: If it does not exist.
        UserError: If it is no YAML mapping, or gives a key twice.
    """
    if not path:
        raise UserError("--config must be a YAML file, got nothing; write --config FILE")
    if not Path(path).is_file():
        raise UserError(f"--config must be a YAML file, there is none at {path!r}; check the path")
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader) or {}
    except _TwiceError as error:
        key, first, second = error.args
        raise UserError(
            f"a key must be given once, {path!r} has {key!r} in lines {first} and {second}; rename or remove one"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path!r} is no YAML; it may have been cut off, or be another file. Reason: {error}"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"a config file must be a YAML mapping, {path!r} holds {type(content).__name__}; give another file"
        )
    return content
