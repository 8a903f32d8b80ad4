"""Types and choices in words."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterable
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    timedelta: "a duration",
    type(None): "null",
    dict: "a mapping",
    list: "a list",
}
_MOST_NAMES = 16
_LONGEST_REASON = 200


def in_words(hint: Any) -> str:
    """What a value of a type must be: ``a whole number or null``."""
    return " or ".join(dict.fromkeys(_parts(hint)))


def choices(hint: Any) -> list[str]:
    """The words that a type's literals allow."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [word for part in members(hint) for word in choices(part)] if is_union(hint) else []


def is_union(hint: Any) -> bool:
    """Whether a value may be of one of several types."""
    return get_origin(hint) in (Union, types.UnionType)


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return get_args(hint) if is_union(hint) else (hint,)


def nearest(given: str, known: Iterable[str]) -> str | None:
    """Finds the known name most similar to ``given``; None if none is similar."""
    lowered = {name.lower(): name for name in known}
    near = get_close_matches(given.lower(), lowered, n=1)
    return lowered[near[0]] if near else None


def did_you_mean(given: str, known: Collection[str], otherwise: str = "") -> str:
    """Suggests a name: ``; did you mean alpha?``; else all known names, or ``otherwise`` if there are too many."""
    if (near := nearest(given, known)) is not None:
        return f"; did you mean {near}?"
    if not otherwise:
        return ""
    return f"; there are {', '.join(sorted(known))}" if 0 < len(known) <= _MOST_NAMES else f"; {otherwise}"


def reason_of(error: BaseException) -> str:
    """Shortens the message of another library's error to one line."""
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON].rpartition(' ')[0]} ..."


def _parts(hint: Any) -> list[str]:
    if is_union(hint):
        literals = choices(hint)
        others = [part for part in get_args(hint) if get_origin(part) is not Literal]
        words = [word for part in others for word in _parts(part)]
        return [*([_one_of(literals)] if literals else []), *words]
    if get_origin(hint) is Literal:
        return [_one_of(choices(hint))]
    kind = get_origin(hint) or hint
    if kind in _WORDS:
        return [_WORDS[kind]]
    return [f"a {kind.__name__}" if isinstance(kind, type) else str(hint)]


def _one_of(words: list[str]) -> str:
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
