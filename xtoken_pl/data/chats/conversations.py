"""Reads the rows of a source as documents: texts, or conversations of which some turns are learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from xtoken_pl.data.chats.messages import Turn, checked_text, is_empty, listed, read_messages
from xtoken_pl.data.chats.tool_calls import read_tools
from xtoken_pl.data.sources.row_errors import RowError

if TYPE_CHECKING:
    from xtoken_pl.data.sources.text_source import TextSource

__all__ = [
    "BY_DEFAULT",
    "CONTEXT_COLUMNS",
    "Conversation",
    "Document",
    "LearnedParts",
    "Row",
    "RowError",
    "Turn",
    "check_context",
    "read_documents",
    "read_row",
    "rewritten",
]

#: Columns beside a conversation by which others change what a model reads of it.
CONTEXT_COLUMNS = (
    *("tools", "functions", "documents", "system", "system_prompt", "history", "chat_template_kwargs"),
    *("images", "image", "videos", "audios"),
)


class LearnedParts(NamedTuple):
    """Parts of an assistant's turn, besides its content, that are learned."""

    turn_ends: bool = False
    reasoning: bool = True
    tool_calls: bool = True

    @property
    def left_out(self) -> list[str]:
        """Parts that are learned by default but left out here, as part of a fingerprint."""
        return ["no reasoning"] * (not self.reasoning) + ["no tool calls"] * (not self.tool_calls)


#: Parts that are learned unless a source says otherwise.
BY_DEFAULT = LearnedParts()


@dataclass(frozen=True)
class Conversation:
    """The messages of a conversation, in order, and the tools that the assistant may call."""

    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] = ()

    def learns_something(self, learned: LearnedParts) -> bool:
        """Whether the assistant says anything that is to be learned."""
        return any(
            turn.is_learned
            and (turn.content or (learned.reasoning and turn.reasoning) or (learned.tool_calls and turn.tool_calls))
            for turn in self.turns
        )

    @property
    def before_answer(self) -> Conversation:
        """The conversation up to its last message that is not the assistant's: what the assistant is to answer."""
        last = max((place for place, turn in enumerate(self.turns) if turn.role != "assistant"), default=-1)
        return Conversation(self.turns[: last + 1], self.tools)

    def __str__(self) -> str:
        """Describes the conversation in messages by its first words."""
        said = next((turn.content for turn in self.turns if turn.content), "")
        return f"the conversation that begins with {said[:60]!r}"


#: A text, or a conversation.
Document = str | Conversation


class Row(NamedTuple):
    """A row of a source as it is read.

    Attributes:
        parts: A text, or the turns in each column of a conversation.
        tools: Tools of a conversation.
        teacher: Name of the teacher that teaches on the row; None if the source has no ``teacher_field``, or the row
            names no teacher.
    """

    parts: list[str] | list[list[Turn]]
    tools: tuple[dict[str, Any], ...] = ()
    teacher: str | None = None

    @property
    def document(self) -> Document:
        """The row as one document."""
        if isinstance(self.parts[0], str):
            return self.parts[0]
        return Conversation(tuple(turn for turns in self.parts for turn in turns), self.tools)


def read_documents(source: TextSource, *columns: Sequence[Any]) -> list[Document]:
    """Converts rows to documents.

    Args:
        source: Source of the rows.
        columns: Values of ``source.columns``, one sequence per column; the column of teachers may be left out.

    Raises:
        RowError: If a row holds no text, or no conversation with an assistant's turn; the message names its place in
            the columns.
    """
    documents: list[Document] = []
    for place, row in enumerate(zip(*columns, strict=True), start=1):
        try:
            documents.append(read_row(source, row).document)
        except RowError as error:
            raise error.at(f"row {place:,} of {len(columns[0]):,} of {source.path!r} that are read together") from None
    return documents


def read_row(source: TextSource, row: Sequence[Any], *, keep_nulls: bool = False) -> Row:
    """Reads a text or a conversation, and what stands beside it.

    Args:
        source: Source of the row.
        row: Values of ``source.columns``; the column of teachers may be left out.
        keep_nulls: Whether a null in tools and arguments of calls is a value, as in JSON files. `datasets` and parquet
            files also fill absent fields with nulls: there, such fields are removed.

    Raises:
        RowError: If the row holds no text, or no conversation from which something can be learned.
    """
    num_columns = len(source.document_columns)
    beside = dict(zip(source.columns[num_columns:], row[num_columns:], strict=False))
    teacher = beside.get(source.teacher_field or "")
    if teacher is not None and not isinstance(teacher, str):
        raise RowError(
            f"teacher_field must hold names of teachers or null, but {source.teacher_field!r} holds {teacher!r} in ",
            "; remove such rows, or name another column",
        )
    if not source.holds_conversations:
        if not isinstance(row[0], str):
            raise RowError(
                f"text_field must hold strings, but {source.text_field!r} holds {type(row[0]).__name__} in ",
                "; remove such rows, or name another column",
            )
        return Row([checked_text(row[0])], teacher=teacher)
    tools: tuple[dict[str, Any], ...] = ()
    if source.tools_field is not None:
        tools = read_tools(beside.get(source.tools_field), source.tools_field, keep_nulls=keep_nulls)
    return Row(_conversation(source, row[:num_columns], keep_nulls=keep_nulls), tools, teacher)


def _conversation(source: TextSource, values: Sequence[Any], *, keep_nulls: bool) -> list[list[Turn]]:
    """Reads the turns in each column of a conversation."""
    prompted = source.prompt_field is not None
    read = [
        read_messages(value, column, role, source, is_context=prompted and role == "user", keep_nulls=keep_nulls)
        for value, column, role in zip(values, source.document_columns, ("user", "assistant"), strict=False)
    ]
    answer = read[-1]
    if source.needs_answers and not any(turn.role == "assistant" or turn.is_learned for turn in answer):
        raise RowError(
            "a conversation must have a message with the role 'assistant' to learn from, got the roles "
            f"{[turn.role for turn in answer]} in ",
            "; remove such rows, or rename their roles",
        )
    return read


def check_context(source: TextSource, row: Mapping[str, Any]) -> None:
    """Refuses a conversation with columns beside it that belong to what a model reads, such as tools.

    Raises:
        RowError: If such a column holds something and is not one of ``source.ignored_fields``.
    """
    read = (*source.columns, *source.ignored)
    if extra := [name for name in CONTEXT_COLUMNS if name not in read and not is_empty(row.get(name))]:
        tools = next((name for name in extra if name in ("tools", "functions")), None)
        give = "write them into the messages" if tools is None else f"set tools_field: {tools} if they are tools"
        raise RowError(
            f"chat templates are given the messages alone, but {listed(extra)} stand beside those of ",
            f"; {give}, or set ignored_fields: [{listed(extra)}]",
        )


def rewritten(document: Document, rewrite: Callable[[str], str]) -> Document:
    """Rewrites a text, or what is said, thought and called in every message of a conversation."""
    if isinstance(document, str):
        return rewrite(document)
    turns = (
        turn._replace(
            content=rewrite(turn.content).strip(),
            reasoning=rewrite(turn.reasoning).strip(),
            tool_calls=tuple(call.rewritten(rewrite) for call in turn.tool_calls),
        )
        for turn in document.turns
    )
    return Conversation(tuple(turns), document.tools)
