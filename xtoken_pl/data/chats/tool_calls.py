"""Reads tools and tool calls: objects, or their JSON text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from xtoken_pl.data.sources.row_errors import RowError

_WAY_OUT = "; remove such rows, or correct them"


class ToolCall(NamedTuple):
    """A call of a tool: its name, its arguments by name, and its id, if it has one."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None

    def as_message(self, write: Callable[[str], str] = str) -> dict[str, Any]:
        """Returns the call as chat templates take it, with the name and every string of the arguments rewritten."""
        function = {"name": write(self.name), "arguments": rewritten_strings(self.arguments, write)}
        return {"type": "function", **({} if self.id is None else {"id": self.id}), "function": function}

    def rewritten(self, write: Callable[[str], str]) -> ToolCall:
        """Rewrites the name and every string of the arguments."""
        return ToolCall(write(self.name), rewritten_strings(self.arguments, write), self.id)


def rewritten_strings(value: Any, write: Callable[[str], str]) -> Any:
    """Rewrites every string of a JSON value except the names of its objects."""
    if isinstance(value, str):
        return write(value)
    if isinstance(value, Mapping):
        return {name: rewritten_strings(part, write) for name, part in value.items()}
    if isinstance(value, Sequence):
        return [rewritten_strings(part, write) for part in value]
    return value


def read_tool_calls(value: Any, column: str, ignored: Sequence[str], *, keep_nulls: bool) -> tuple[ToolCall, ...]:
    """Reads the tool calls of a message.

    Args:
        value: A list of ``{function: {name, arguments}}`` or ``{name, arguments}``, or its JSON text.
        column: Column of the message, for errors.
        ignored: Names of fields that are left out.
        keep_nulls: Whether a null is a value; else it stands for an absent field, as `datasets` fills it in.

    Raises:
        RowError: If they are something else.
    """
    what = f"tool_calls of a message of {column}"
    calls = _values(value, what, keep_nulls=keep_nulls)
    return tuple(_call(call, what, ignored) for call in calls)


def read_tools(value: Any, column: str, *, keep_nulls: bool) -> tuple[dict[str, Any], ...]:
    """Reads the tools of a conversation.

    Args:
        value: A list of objects (JSON schemas), its JSON text, or nothing.
        column: Column of the tools.
        keep_nulls: Whether a null is a value; else it stands for an absent field, as `datasets` fills it in.

    Raises:
        RowError: If it is something else.
    """
    tools = _values(value, column, keep_nulls=keep_nulls)
    tools = [_parsed(tool, column) if isinstance(tool, str) else tool for tool in tools]
    if odd := [type(tool).__name__ for tool in tools if not isinstance(tool, dict)]:
        raise RowError(f"{column} must hold lists of objects (JSON schemas), got {odd[0]} in ", _WAY_OUT)
    return tuple(tools)


def as_json(value: Any, what: str) -> str:
    """Writes a value as JSON text.

    Raises:
        RowError: If it is none of the values that JSON has.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise RowError(f"{what} must be JSON and valid Unicode ({error}) in ", _WAY_OUT) from None
    return text


def _values(value: Any, what: str, *, keep_nulls: bool) -> list[Any]:
    """Returns the items of a list, or of the JSON text of a list; none for null and an empty text."""
    is_text = isinstance(value, str)
    value = _parsed(value or "null", what) if is_text else value
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowError(f"{what} must be a list, or its JSON text, got {type(value).__name__} in ", _WAY_OUT)
    as_json(value, what)
    return [item if keep_nulls or is_text else _without_nulls(item) for item in value]


def _call(call: Any, what: str, ignored: Sequence[str]) -> ToolCall:
    """Reads one call, whose name and arguments stand in it or in its field ``function``."""
    inner = call.get("function") or call if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise RowError(f"{what} must be lists of {{function: {{name, arguments}}}}, got {call!r} in ", _WAY_OUT)
    known = ("id", "type", "function", "index", "name", "arguments", *ignored)
    if extra := [key for key, value in {**call, **inner}.items() if key not in known and value not in (None, "")]:
        raise RowError(
            f"chat templates are given the name, the arguments and the id of a call, but {what} also have "
            f"{', '.join(extra)} in ",
            f"; remove it, or set ignored_fields: [{', '.join(extra)}]",
        )
    if call.get("type") not in (None, "function"):
        raise RowError(f"{what} must have the type 'function', got {call['type']!r} in ", _WAY_OUT)
    arguments = inner.get("arguments")
    arguments = _parsed(arguments, f"arguments in {what}") if isinstance(arguments, str) and arguments else arguments
    if not isinstance(arguments or {}, Mapping):
        raise RowError(f"the arguments in {what} must be an object, or its JSON text, got {arguments!r} in ", _WAY_OUT)
    identity = call.get("id")
    return ToolCall(inner["name"], dict(arguments or {}), None if identity is None else str(identity))


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise RowError(f"{what} must be valid JSON, got {text[:60]!r} ({error}) in ", _WAY_OUT) from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _without_nulls(value: Any) -> Any:
    """Removes the fields without a value: `datasets` gives all objects of a column the same fields."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list | tuple) else value
