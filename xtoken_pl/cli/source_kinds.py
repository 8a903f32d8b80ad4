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
from xtoken_pl.utilities.errors import UserError

#: Keys of ``data`` that hold one source or several by name.
SPLITS = ("train", "val", "test")
_FIELDS = {field.name for field in fields(TextSource)}
_BY_NAME = dict[str, TextSource]
_adapt_typehints = typehints.adapt_typehints


def are_other_kinds(one: Any, other: Any) -> bool:
    """Whether one of two values of a split is a single source of texts, and the other one holds named sources."""
    return (are_named(one) and _is_single(other)) or (_is_single(one) and are_named(other))


def _is_single(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(_FIELDS & value.keys())


def are_named(value: Any) -> bool:
    """Whether a value of a split holds named sources."""
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
        if isinstance(value, Mapping):
            _refuse_both(value)
        kind = _BY_NAME if _are_given_by_name(value) else TextSource
        typehint = NoneType if value is None and NoneType in kinds else kind
    if typehint == _BY_NAME:
        value = _by_name(value, options)
    return _adapt_typehints(value, typehint, *positional, **options)


def _are_given_by_name(value: Any) -> bool:
    if isinstance(value, NestedArg):  # of an option: --data.train.KEY VALUE
        first, dot, _ = value.key.partition(".")
        return bool(dot or isinstance(value.val, dict)) and first not in {*_FIELDS, "init_args"}
    return are_named(value)


def _by_name(value: Any, options: dict[str, Any]) -> Any:
    """Applies an option of one of the named sources to its former value, and refuses a path in place of a source."""
    if isinstance(value, NestedArg):
        name, _, key = value.key.partition(".")
        before = previous if isinstance(previous := options.get("prev_val"), dict) else {}
        if not key:
            return {**before, name: value.val}
        option = NestedArg(key, value.val)
        return {**before, name: _adapt_typehints(option, TextSource, **(options | {"prev_val": before.get(name)}))}
    for name, source in value.items() if isinstance(value, dict) else ():
        if isinstance(source, str):
            _refuse_text(source, f'Parser key "{name}":\n')
        if source is None:
            raise UserError(f"source {name!r} must be a mapping of options, got null; weight: 0 leaves a source out")
    return value


def _refuse_both(value: Mapping[str, Any]) -> None:
    """Refuses options of a single source beside named sources, and a named source that is called as an option."""
    named = [key for key, inner in value.items() if isinstance(inner, Mapping) and "path" in inner and key != "alphas"]
    options = [key for key in value if key in _FIELDS and key not in named]
    if taken := next((name for name in named if name in _FIELDS), None):
        raise UserError(f"a source cannot be called {taken!r}, which is an option of a source; rename it")
    if named and options:
        raise UserError(
            f"a split holds the options of one source, or several sources by name, got {options[0]} beside "
            f"{named[0]}: {{path: ...}}; give the options a name, too, or remove one of the two"
        )


def _refuse_text(text: str, place: str = "") -> NoReturn:
    typehints.raise_unexpected_value(f"{place}Unable to load config {text!r}", text)
