"""What a user gave, as one tree: the files and, over them, the options of the command line."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from xtoken_pl.cli.config_files import merge, read_config

#: A place in the tree: keys, and numbers of a list's items.
Place = tuple[str | int, ...]

_SPECIFICATION = ("class_path", "init_args", "dict_kwargs")
_WITHOUT_VALUE = ("help", "print_config", "config")


@dataclass
class Given:
    """Files and options, together and apart.

    Attributes:
        tree: Files and options together.
        files: Each file's path and content.
        options: By key, what the command line sets.
        stray: Words that are neither an option nor the value of one.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    files: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    stray: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, arguments: list[str], known: Collection[str]) -> Given:
        """Reads the arguments behind a verb.

        Args:
            known: The parser's options, some of which may be shortened.
        """
        given = cls()
        words = list(arguments)
        while words:
            word = words.pop(0)
            if not word.startswith("-"):
                given.stray.append(word)
                continue
            key, equals, value = word.lstrip("-").partition("=")
            if not equals and words and not words[0].startswith("--"):
                value, equals = words.pop(0), "="
            if key in ("config", "c"):
                given._add_file(value)
            elif equals and key.rpartition(".")[2] not in _WITHOUT_VALUE:
                given.options[_whole(key, known)] = _value(value)
        for key, value in given.options.items():
            put(given.tree, key.removesuffix("+").split("."), [value] if key.endswith("+") else value)
        return given

    def name(self, place: Place) -> str:
        """A place as the user wrote it: an option, or a key of a file."""
        key = _dotted(place)
        short = _dotted(tuple(part for part in place if part not in _SPECIFICATION and isinstance(part, str)))
        for option in (option.removesuffix("+") for option in self.options):
            if option in (key, short) or short.startswith(f"{option}.") or option.startswith(f"{short}."):
                return f"--{short}"
        for path, content in reversed(self.files):
            if _holds(content, place):
                return f"{key} in {path}" if path else key
        return key

    def _add_file(self, path: str) -> None:
        if "\n" in path:  # merged content, with which processes are started
            content, path = yaml.safe_load(path), ""
        else:
            content = read_config(path)
        self.files.append((path, content))
        self.tree = merge(self.tree, content)


def put(tree: Any, keys: list[str], value: Any) -> None:
    """Sets a value as the command line does: a key may leave out ``init_args``, and name the last item of a list."""
    node = tree
    for position, key in enumerate(keys):
        if isinstance(node, dict) and "class_path" in node and key not in _SPECIFICATION:
            node = node.setdefault("init_args", {})
        last = position == len(keys) - 1
        if last:
            before = node.get(key)
            if isinstance(value, list) and isinstance(before, list):
                value = [*before, *value]
            elif isinstance(before, dict) and before.get("class_path") == value:
                value = before  # the same class keeps its arguments
            node[key] = value
            return
        child = node.get(key)
        if isinstance(child, list) and child:
            if isinstance(child[-1], str):
                child[-1] = {"class_path": child[-1]}
            child = child[-1]
        elif isinstance(child, str):
            child = node[key] = {"class_path": child}
        elif not isinstance(child, dict):
            child = node[key] = {}
        node = child


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        return text


def _whole(key: str, known: Collection[str]) -> str:
    """An option that was shortened, whole."""
    if key in known:
        return key
    longer = [name for name in known if name.startswith(key) and not name.endswith((".help", "+"))]
    return longer[0] if len(longer) == 1 else key


def _holds(content: Any, place: Place) -> bool:
    for part in place:
        if isinstance(content, dict) and part not in content and f"{part}+" in content:
            part = f"{part}+"
        if isinstance(content, list):
            if not (isinstance(part, int) and part < len(content)):
                return False
        elif not (isinstance(content, dict) and part in content):
            return False
        content = content[part]
    return True


def _dotted(place: Place) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def is_config_file(value: Any) -> bool:
    """Whether a value names a file that stands for a part of the configuration."""
    return isinstance(value, str) and value.endswith((".yaml", ".yml", ".json")) and Path(value).is_file()
