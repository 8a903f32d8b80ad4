"""Reads the rows of a source as documents: texts, or conversations of which some turns are learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from xtoken_pl.utilities.errors import UserError

if TYPE_CHECKING:
    from xtoken_pl.data.sources import TextSource

#: Fields by which a message says whether it is learned. ``weight`` (OpenAI) and ``loss`` (ms-swift) belong to what the
#: assistant says; by the others (axolotl) any message may be learned.
_ASSISTANT_FLAGS = ("weight", "loss")
_FLAGS = ("train", "training", "trainable", *_ASSISTANT_FLAGS)
#: Roles that chat templates know.
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "environment")
#: Columns beside a conversation by which others change what a model reads of it.
CONTEXT_COLUMNS = (
    *("tools", "functions", "documents", "system", "system_prompt", "history", "chat_template_kwargs"),
    *("images", "image", "videos", "audios"),
)


class Turn(NamedTuple):
    """A message: its role, its content without surrounding white space, and whether it is learned."""

    role: str
    content: str
    is_learned: bool


@dataclass(frozen=True)
class Conversation:
    """The messages of a conversation, in order."""

    turns: tuple[Turn, ...]

    @property
    def learns_something(self) -> bool:
        """Whether the assistant says anything that is to be learned."""
        return any(turn.is_learned and turn.content for turn in self.turns)

    def __str__(self) -> str:
        """Describes the conversation in messages by its first words."""
        said = next((turn.content for turn in self.turns if turn.content), "")
        return f"the conversation that begins with {said[:60]!r}"


#: A text, or a conversation.
Document = str | Conversation


class RowError(UserError):
    """Raised for a row that cannot be used; its place is filled in where it is known.

    Args:
        rule: Message before the place.
        way_out: Message after the place.
        where: The place, such as ``row 3 of 'texts.jsonl'``.
    """

    def __init__(self, rule: str, way_out: str, where: str = "a row") -> None:
        super().__init__(f"{rule}{where}{way_out}")
        self.rule, self.way_out, self.where = rule, way_out, where

    def at(self, where: str) -> RowError:
        """Returns the error with its place."""
        return RowError(self.rule, self.way_out, where)

    def __reduce__(self) -> tuple[Any, ...]:
        return RowError, (self.rule, self.way_out, self.where)


def read_documents(source: TextSource, *columns: Sequence[Any]) -> list[Document]:
    """Converts rows to documents.

    Args:
        source: Source of the rows.
        columns: Values of ``source.columns``, one sequence per column.

    Raises:
        RowError: If a row holds no text, or no conversation with an assistant's turn; the message names its place in
            the columns.
    """
    documents: list[Document] = []
    for place, row in enumerate(zip(*columns, strict=True), start=1):
        try:
            documents.append(_document(read_row(source, row)))
        except RowError as error:
            raise error.at(f"row {place:,} of {len(columns[0]):,} of {source.path!r} that are read together") from None
    return documents


def read_row(source: TextSource, row: Sequence[Any]) -> list[str] | list[list[Turn]]:
    """Reads a text, or the turns in each column of a conversation.

    Args:
        source: Source of the row.
        row: Values of ``source.columns``.

    Raises:
        RowError: If the row holds no text, or no conversation from which something can be learned.
    """
    if source.teacher_field is not None and not isinstance(row[-1], str | None):
        raise RowError(
            f"teacher_field must hold names of teachers or null, but {source.teacher_field!r} holds {row[-1]!r} in ",
            "; remove such rows, or name another column",
        )
    if not source.holds_conversations:
        if not isinstance(row[0], str):
            raise RowError(
                f"text_field must hold strings, but {source.text_field!r} holds {type(row[0]).__name__} in ",
                "; remove such rows, or name another column",
            )
        return [_text(row[0])]
    prompted = source.prompt_field is not None
    read = [
        _turns(value, column, role, source, is_context=prompted and role == "user")
        for value, column, role in zip(row, source.document_columns, ("user", "assistant"), strict=False)
    ]
    answer = read[-1]
    if not any(turn.role == "assistant" or turn.is_learned for turn in answer):
        raise RowError(
            "a conversation must have a message with the role 'assistant' to learn from, got the roles "
            f"{[turn.role for turn in answer]} in ",
            "; remove such rows, or rename their roles",
        )
    return read


def stored_flag(source: TextSource) -> str | None:
    """Returns the field by which a stored message says whether it is learned; None if the source ignores all of them.

    A message whose flags are all ignored is learned as its role says, when it is read again, too.
    """
    return next((name for name in _FLAGS if name not in source.ignored), None)


def check_context(source: TextSource, row: Mapping[str, Any]) -> None:
    """Refuses a conversation with columns beside it that belong to what a model reads, such as tools.

    Raises:
        RowError: If such a column holds something and is not one of ``source.ignored_fields``.
    """
    read = (*source.columns, *source.ignored)
    if extra := [name for name in CONTEXT_COLUMNS if name not in read and not _is_empty(row.get(name))]:
        raise RowError(
            f"chat templates are given the messages alone, but {_listed(extra)} stand beside those of ",
            f"; write them into the messages, or set ignored_fields: [{_listed(extra)}]",
        )


def _document(read: list[str] | list[list[Turn]]) -> Document:
    return read[0] if isinstance(read[0], str) else Conversation(tuple(turn for turns in read for turn in turns))


def rewritten(document: Document, rewrite: Callable[[str], str]) -> Document:
    """Rewrites a text, or the content of every message of a conversation."""
    if isinstance(document, str):
        return rewrite(document)
    return Conversation(tuple(turn._replace(content=rewrite(turn.content).strip()) for turn in document.turns))


def _text(value: str) -> str:
    """Returns a text that can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"texts must be valid Unicode, got half of a surrogate pair ({value[error.start]!r}) in ",
            "; remove it, or write both halves",
        ) from None
    return value


# Messages -------------------------------------------------------------------------------------------------------------


def _turns(value: Any, column: str, role: str, source: TextSource, *, is_context: bool) -> list[Turn]:
    """Reads a list of messages, or a text that is the message of a role; ``is_context``: it is not learned."""
    if isinstance(value, str) and source.messages_field is None:
        return [Turn(role, _text(value).strip(), not is_context)]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        got = repr(value) if not value else type(value).__name__
        raise RowError(
            f"{column} must hold {'' if source.messages_field else 'a text or '}a list of at least one message "
            f"{{role, content}}, got {got} in ",
            "; remove such rows, or name another column",
        )
    return [_turn(message, column, source, is_context=is_context) for message in value]


def _turn(message: Any, column: str, source: TextSource, *, is_context: bool) -> Turn:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        got = f"the keys {sorted(message)}" if isinstance(message, Mapping) else type(message).__name__
        raise RowError(
            f"every message of {column} must have a role and a content, got {got} in ",
            "; rename the keys (ShareGPT's from and value, say), or name another column",
        )
    known = ("role", "content", *_FLAGS, *source.ignored)
    if extra := [key for key, value in message.items() if key not in known and not _is_empty(value)]:
        raise RowError(
            f"chat templates are given role and content alone, but a message of {column} also has {_listed(extra)} in ",
            f"; remove such rows, write it into the content, or set ignored_fields: [{_listed(extra)}]",
        )
    role, content = message["role"], message["content"]
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
    flags = {name: message[name] for name in _FLAGS if name not in source.ignored and message.get(name) is not None}
    return Turn(role, _text(content).strip(), _is_learned(role, flags, column, is_context=is_context))


def _is_learned(role: str, flags: Mapping[str, Any], column: str, *, is_context: bool) -> bool:
    """Whether a message is learned: as its flags say; without any, if the assistant says it."""
    given = ", ".join(f"{name} {value!r}" for name, value in flags.items())
    if any(value not in (0, 1) for value in flags.values()):
        raise RowError(
            f"a message of {column} is learned or not: {_listed(flags)} must be 0 or 1, false or true, got {given} in ",
            "; choose one of them",
        )
    if len(set(map(bool, flags.values()))) > 1:
        raise RowError(f"the fields of a message of {column} must agree, got {given} in ", "; leave all but one out")
    if not flags and role not in _ROLES:
        raise RowError(
            f"the role of a message of {column} must be one of {_listed(_ROLES)}, got {role!r} in ",
            "; rename it, or say by a field `train` (true or false) whether such messages are learned",
        )
    learned = any(flags.values()) if flags else role == "assistant" and not is_context
    if learned and (is_context or (role != "assistant" and any(flags.get(name) for name in _ASSISTANT_FLAGS))):
        said = "the prompt" if is_context else f"a message of the role {role!r}"
        raise RowError(
            f"only what the assistant answers is learned, but {said} has {given} in ",
            "; set it to 0 or leave it out" + ("" if is_context else ", or say `train: true` to learn the message"),
        )
    return learned


def _is_empty(value: Any) -> bool:
    """Whether a field is absent: `datasets` fills the fields that a row lacks with nulls."""
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    return value is None or (isinstance(value, Sequence) and len(value) == 0)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
