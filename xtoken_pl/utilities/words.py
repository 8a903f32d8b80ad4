"""Names, types and reasons in words, for messages."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches

_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "NoneType": "null",
    "dict": "a mapping",
    "dict[str, float]": "a mapping to numbers",
    "list": "a list",
}
_MOST_NAMES = 16
_NUM_SHOWN = 3
_LONGEST_REASON = 200


def type_in_words(types: str) -> str:
    """Describes the values of one or several types: ``a whole number or null``.

    Args:
        types: The type as Python writes it: ``<class 'int'>, typing.Literal['a', 'b'], dict[str, float]``.
    """
    named = literals(types)
    words = [f"{'one of ' if len(named) > 1 else ''}{', '.join(named)}"] if named else []
    for name in re.findall(r"<class '(?:\w+\.)*(\w+)'>|\b(dict\[str, float\]|dict(?=\[)|list(?=\[))", types):
        word = "".join(name)
        words.append(_WORDS.get(word, f"a {word}"))
    return " or ".join(dict.fromkeys(words))


def literals(types: str) -> list[str]:
    """Lists the values of the ``Literal`` types in a type as Python writes it."""
    inside = ", ".join(re.findall(r"Literal\[(.*?)\]", types))
    return list(dict.fromkeys(word.strip("'\" ") for word in inside.split(","))) if inside else []


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


def percent(share: float) -> str:
    """Writes a share in percent, with one digit behind the point: ``0.3%``, ``less than 0.1%``."""
    return "less than 0.1%" if 0 < share < 0.001 else f"{100 * share:.1f}%"


def first_of(names: Collection[str]) -> str:
    """Lists the first names in alphabetical order, and the number of the others: ``a, b, c and 4 more``."""
    shown, rest = sorted(names)[:_NUM_SHOWN], len(names) - _NUM_SHOWN
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def reason_of(error: BaseException) -> str:
    """Shortens the message of another library's error to one line."""
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON].rpartition(' ')[0]} ..."
