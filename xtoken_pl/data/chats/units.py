"""Messages as chat templates take them, and their units: the texts that a template is given.

Units are contents, reasoning, the names of called tools, and the strings of their arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from xtoken_pl.data.chats.messages import TOOL_ROLES, Turn

#: Messages as chat templates take them.
Messages = list[dict[str, Any]]


class Kind(IntEnum):
    """Kind of a unit, in the order in which a turn has them."""

    REASONING = 0
    CONTENT = 1
    CALL = 2


class Unit(NamedTuple):
    """A text of a message: the number of its turn, its kind, and whether a template may write it as a JSON string."""

    turn: int
    kind: Kind
    text: str
    may_be_json: bool

    @property
    def spellings(self) -> dict[str, None]:
        """The texts that a template may write for it."""
        return dict.fromkeys([json.dumps(self.text, ensure_ascii=False)[1:-1]] * self.may_be_json + [self.text])


def messages_of(turns: Sequence[Turn], write: Callable[[Unit], str], *, as_text: bool = False) -> Messages:
    """Returns messages as chat templates take them, with ``write`` applied to every unit.

    Args:
        turns: The messages.
        write: Rewrites a unit.
        as_text: Whether the arguments of calls are JSON text instead of objects.
    """
    messages = [_message(number, turn, write) for number, turn in enumerate(turns)]
    functions = [call["function"] for message in messages for call in message.get("tool_calls", ())]
    for function in functions if as_text else ():
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return messages


def _message(number: int, turn: Turn, write: Callable[[Unit], str]) -> dict[str, Any]:
    is_result = turn.role in TOOL_ROLES
    message: dict[str, Any] = {
        "role": turn.role,
        "content": write(Unit(number, Kind.CONTENT, turn.content, may_be_json=is_result)),
    }
    if turn.reasoning:
        reasoning = write(Unit(number, Kind.REASONING, turn.reasoning, may_be_json=False))
        message |= {"reasoning_content": reasoning, "thinking": reasoning}
    if turn.tool_calls:
        message["tool_calls"] = [
            call.as_message(lambda text: write(Unit(number, Kind.CALL, text, may_be_json=True)))
            for call in turn.tool_calls
        ]
    given = {"tool_call_id": turn.tool_call_id, "name": turn.name}
    return message | {name: value for name, value in given.items() if value is not None}
