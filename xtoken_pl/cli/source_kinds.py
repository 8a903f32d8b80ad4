"""Distinguishes one source of texts from several by name, which the same key of a configuration may hold.

jsonargparse tries all types of a union in turn: a misspelled key in a named source would be reported as one of a single
source, and a type that fails may have changed the value that the next one is given. Here the keys decide which of the
two a value is, since no source may be called as a field of :class:`xtoken_pl.TextSource`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import NoneType
from typing import Any, NoReturn, get_args

import jsonargparse._typehints as typehints
from jsonargparse import Namespace
from jsonargparse._util import NestedArg

from xtoken_pl.data import TextSource

#: Keys of ``data`` that hold one source or several by name.
SPLITS = ("train", "val", "test")
_FIELDS = {field.name for field in fields(TextSource)}
_BY_NAME = dict[str, TextSource]
_adapt_typehints = typehints.adapt_typehints


def are_other_kinds(one: Any, other: Any) -> bool:
    """Whether one of two values of a split is a single source of texts, and the other one holds named sources."""
    return (_are_named(one) and _is_single(other)) or (_is_single(one) and _are_named(other))


def _is_single(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(_FIELDS & value.keys())


def _are_named(value: Any) -> bool:
    if not isinstance(value, Mapping) or _is_single(value):
        return False
    return any(isinstance(inner, Mapping | Namespace) for inner in value.values())


def distinguish_sources() -> None:
    """Makes jsonargparse parse a value as the kind that its keys say."""
    typehints.adapt_typehints = _adapt  # type: ignore[assignment]


def _adapt(value: Any, typehint: Any, *positional: Any, **options: Any) -> Any:
    """Takes the place of jsonargparse's function that converts a value to a type, or an instance to a value."""
    kinds = get_args(typehint)
    if {TextSource, _BY_NAME} <= set(kinds):
        if isinstance(value, str):
            _refuse_text(value)
        kind = _BY_NAME if _are_given_by_name(value) else TextSource
        typehint = NoneType if value is None and NoneType in kinds else kind
    if typehint == _BY_NAME:
        value = _by_name(value, options)
    return _adapt_typehints(value, typehint, *positional, **options)


def _are_given_by_name(value: Any) -> bool:
    if isinstance(value, NestedArg):  # of an option: --data.train.KEY VALUE
        first, dot, _ = value.key.partition(".")
        return bool(dot) and first not in {*_FIELDS, "init_args"}
    return _are_named(value)


def _by_name(value: Any, options: dict[str, Any]) -> Any:
    """Applies an option of one of the named sources to its former value, and refuses a path in place of a source."""
    if isinstance(value, NestedArg):
        name, key = value.key.split(".", 1)
        before = previous if isinstance(previous := options.get("prev_val"), dict) else {}
        option = NestedArg(key, value.val)
        return {**before, name: _adapt_typehints(option, TextSource, **(options | {"prev_val": before.get(name)}))}
    for name, source in value.items() if isinstance(value, dict) else ():
        if isinstance(source, str):
            _refuse_text(source, f'Parser key "{name}":\n')
    return value


def _refuse_text(text: str, place: str = "") -> NoReturn:
    typehints.raise_unexpected_value(f"{place}Unable to load config {text!r}", text)
