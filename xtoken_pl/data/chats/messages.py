"""Reads messages as turns: what is said, thought and called, and whether it is learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from xtoken_pl.data.chats.tool_calls import ToolCall, read_tool_calls
from xtoken_pl.data.sources.row_errors import RowError

if TYPE_CHECKING:
    from xtoken_pl.data.sources.text_source import TextSource

#: Fields by which a message says whether it is learned. ``weight`` (OpenAI) and ``loss`` (ms-swift) belong to what the
#: assistant says; by the others (axolotl) any message may be learned, except what a tool returned.
_ASSISTANT_FLAGS = ("weight", "loss")
_FLAGS = ("train", "training", "trainable", *_ASSISTANT_FLAGS)
#: Roles of what tools return.
TOOL_ROLES = ("tool", "function", "ipython", "environment")
#: Roles that chat templates know.
_ROLES = ("system", "developer", "user", "assistant", *TOOL_ROLES)
#: Names of a message's reasoning, in the order in which transformers looks for it.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Turn(NamedTuple):
    """A message.

    Attributes:
        role: Role of the speaker.
        content: Content without surrounding white space; may be empty if there are tool calls.
        is_learned: Whether what the message holds is learned.
        reasoning: Reasoning of the assistant before its content, without surrounding white space.
        tool_calls: Tool calls of the assistant after its content.
        tool_call_id: Id of the call that a tool answers.
        name: Name of the tool that answers.
    """

    role: str
    content: str
    is_learned: bool
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


def stored_flag(source: TextSource) -> str | None:
    """Returns the field by which a stored message says whether it is learned; None if the source ignores all of them.

    A message whose flags are all ignored is learned as its role says, when it is read again, too.
    """
    return next((name for name in _FLAGS if name not in source.ignored), None)


def stored_reasoning(source: TextSource) -> str | None:
    """Returns the field under which the reasoning of a message is stored; None if the source ignores all of them."""
    return next((name for name in _REASONING if name not in source.ignored), None)


def read_messages(
    value: Any, column: str, role: str, source: TextSource, *, is_context: bool, keep_nulls: bool
) -> list[Turn]:
    """Reads a list of messages, or a text that is the message of a role.

    Args:
        value: The messages or the text.
        column: Its column.
        role: Role of a text.
        source: Source of the row.
        is_context: Whether the messages are not learned.
        keep_nulls: Whether a null in the arguments of a call is a value, rather than an absent field.

    Raises:
        RowError: If it is something else, or a message has a field that would be lost.
    """
    if isinstance(value, str) and source.messages_field is None:
        return [Turn(role, checked_text(value).strip(), not is_context)]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        got = repr(value) if not value else type(value).__name__
        raise RowError(
            f"{column} must hold {'' if source.messages_field else 'a text or '}a list of at least one message "
            f"{{role, content}}, got {got} in ",
            "; remove such rows, or name another column",
        )
    return [_turn(message, column, source, is_context=is_context, keep_nulls=keep_nulls) for message in value]


def checked_text(value: str) -> str:
    """Returns a text that can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"texts must be valid Unicode, got half of a surrogate pair ({value[error.start]!r}) in ",
            "; remove it, or write both halves",
        ) from None
    return value


def is_empty(value: Any) -> bool:
    """Whether a field is absent: `datasets` fills the fields that a row lacks with nulls."""
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    return value is None or (isinstance(value, Sequence) and len(value) == 0)


def listed(names: Iterable[str]) -> str:
    """Lists names for messages."""
    return ", ".join(names)


def _turn(message: Any, column: str, source: TextSource, *, is_context: bool, keep_nulls: bool) -> Turn:
    given = message if isinstance(message, Mapping) else {}
    fields = {key: value for key, value in given.items() if key not in source.ignored and not is_empty(value)}
    # A call may stand without a content, which is then null or missing.
    content = given.get("content", "" if "tool_calls" in fields else None)
    content = "" if content is None and "tool_calls" in fields else content
    if "role" not in given or ("content" not in given and content is None):
        got = f"the keys {sorted(message)}" if isinstance(message, Mapping) else type(message).__name__
        raise RowError(
            f"every message of {column} must have a role and a content, got {got} in ",
            "; rename the keys (ShareGPT's from and value, say), or name another column",
        )
    role = given["role"]
    _refuse_other_fields(fields, role, column)
    if isinstance(content, Sequence) and not isinstance(content, str):
        raise RowError(
            f"the content of every message of {column} must be a string, got a list of {len(content)} parts "
            "(images, say) in ",
            "; remove such rows, or join the parts that are text",
        )
    if not isinstance(role, str) or not isinstance(content, str):
        raise RowError(
            f"the role and the content of every message of {column} must be strings, got {type(role).__name__} and "
            f"{type(content).__name__} in ",
            "; remove such rows",
        )
    flags = {name: given[name] for name in _FLAGS if name not in source.ignored and given.get(name) is not None}
    return Turn(
        role,
        checked_text(content).strip(),
        _is_learned(role, flags, column, is_context=is_context),
        _reasoning(fields, column),
        read_tool_calls(fields.get("tool_calls"), column, source.ignored, keep_nulls=keep_nulls),
        _string(fields, "tool_call_id", column),
        _string(fields, "name", column),
    )


def _refuse_other_fields(fields: Mapping[str, Any], role: Any, column: str) -> None:
    """Refuses fields that no chat template would be given."""
    of_role: tuple[str, ...] = ("tool_calls", *_REASONING) if role == "assistant" else ()
    read = ("role", "content", *(("tool_call_id", "name") if role in TOOL_ROLES else of_role))
    if extra := [key for key in fields if key not in (*read, *_FLAGS)]:
        raise RowError(
            f"of messages of the role {role!r}, chat templates are given {listed(read)} alone, but a message of "
            f"{column} also has {listed(extra)} in ",
            f"; remove such rows, write it into the content, or set ignored_fields: [{listed(extra)}]",
        )


def _reasoning(fields: Mapping[str, Any], column: str) -> str:
    given = {name: _string(fields, name, column) or "" for name in _REASONING if name in fields}
    texts = {checked_text(text).strip() for text in given.values()}
    if len(texts) > 1:
        raise RowError(
            f"{listed(given)} of a message of {column} must be the same text, but differ in ",
            "; leave all but one out",
        )
    return next(iter(texts), "")


def _string(fields: Mapping[str, Any], name: str, column: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise RowError(
            f"{name} of a message of {column} must be a string, got {type(value).__name__} in ",
            f"; remove such rows, or set ignored_fields: [{name}]",
        )
    return value


def _is_learned(role: str, flags: Mapping[str, Any], column: str, *, is_context: bool) -> bool:
    """Whether a message is learned: as its flags say; without any, if the assistant says it."""
    given = ", ".join(f"{name} {value!r}" for name, value in flags.items())
    if any(value not in (0, 1) for value in flags.values()):
        raise RowError(
            f"a message of {column} is learned or not: {listed(flags)} must be 0 or 1, false or true, got {given} in ",
            "; choose one of them",
        )
    if len(set(map(bool, flags.values()))) > 1:
        raise RowError(f"the fields of a message of {column} must agree, got {given} in ", "; leave all but one out")
    if not flags and role not in _ROLES:
        raise RowError(
            f"the role of a message of {column} must be one of {listed(_ROLES)}, got {role!r} in ",
            "; rename it, or say by a field `train` (true or false) whether such messages are learned",
        )
    learned = any(flags.values()) if flags else role == "assistant" and not is_context
    is_never_learned = is_context or role in TOOL_ROLES
    if learned and (is_never_learned or (role != "assistant" and any(flags.get(name) for name in _ASSISTANT_FLAGS))):
        said = "the prompt" if is_context else f"a message of the role {role!r}"
        raise RowError(
            f"only what the assistant answers is learned, but {said} has {given} in ",
            "; set it to 0 or leave it out"
            + ("" if is_never_learned else ", or say `train: true` to learn the message"),
        )
    return learned
