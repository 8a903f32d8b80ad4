"""Reads the rows of a source as documents: texts, or conversations of which some turns are learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from xtoken_pl.data.sources import TextSource
from xtoken_pl.utilities.errors import UserError

#: Parts of a message that templates write in addition to its content; they would be lost.
_NOT_CONTENT = ("tool_calls", "reasoning_content", "reasoning", "thinking")


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


def read_documents(source: TextSource, *columns: Sequence[Any]) -> list[Document]:
    """Converts rows to documents.

    Args:
        source: Source of the rows.
        columns: Values of ``source.columns``, one sequence per column.

    Raises:
        UserError: If a row holds no text, or no conversation with an assistant's turn; the message names the row.
    """
    documents: list[Document] = []
    for place, row in enumerate(zip(*columns, strict=True)):
        where = f"at place {place} of {len(columns[0])}"
        if not source.holds_conversations:
            (text,) = row
            if not isinstance(text, str):
                raise UserError(
                    f"every text must be a string, got {type(text).__name__} {where}; "
                    "remove such rows, or name another text_field"
                )
            documents.append(text)
        elif source.messages_field is not None:
            documents.append(_conversation(_messages(row[0], source.messages_field, where), [], where))
        else:
            prompt, completion = (
                [(role, said.strip())] if isinstance(said, str) else _messages(said, column, where)
                for said, role, column in zip(row, ("user", "assistant"), source.columns, strict=True)
            )
            documents.append(_conversation(completion, prompt, where))
    return documents


def rewritten(document: Document, rewrite: Callable[[str], str]) -> Document:
    """Rewrites a text, or the content of every message of a conversation."""
    if isinstance(document, str):
        return rewrite(document)
    return Conversation(tuple(turn._replace(content=rewrite(turn.content).strip()) for turn in document.turns))


def _conversation(messages: list[tuple[str, str]], context: list[tuple[str, str]], where: str) -> Conversation:
    if not any(role == "assistant" for role, _ in messages):
        raise UserError(
            f"a conversation must have a message with the role 'assistant' to learn from, got the roles "
            f"{[role for role, _ in messages]} {where}; remove such rows, or rename their roles"
        )
    unlearned = [Turn(role, content, False) for role, content in context]
    return Conversation((*unlearned, *(Turn(role, content, role == "assistant") for role, content in messages)))


def _messages(messages: Any, column: str, where: str) -> list[tuple[str, str]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        got = repr(messages) if not messages else type(messages).__name__
        raise UserError(
            f"{column} must hold a list of at least one message {{role, content}}, got {got} {where}; "
            "remove such rows, or name another column"
        )
    return [_message(message, column, where) for message in messages]


def _message(message: Any, column: str, where: str) -> tuple[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        got = f"the keys {sorted(message)}" if isinstance(message, Mapping) else type(message).__name__
        raise UserError(
            f"every message of {column} must have a role and a content, got {got} {where}; rename the keys "
            "(ShareGPT's from and value, say), or name another column"
        )
    role, content = message["role"], message["content"]
    if isinstance(content, Sequence) and not isinstance(content, str):
        raise UserError(
            f"the content of every message of {column} must be a string, got a list of {len(content)} parts "
            f"(images, say) {where}; remove such rows, or join the parts that are text"
        )
    if not isinstance(role, str) or not isinstance(content, str):
        raise UserError(
            f"the role and the content of every message of {column} must be strings, got {type(role).__name__} and "
            f"{type(content).__name__} {where}; remove such rows"
        )
    if extra := [key for key in _NOT_CONTENT if message.get(key)]:
        raise UserError(
            f"only the content of a message is learned, but one of {column} also has {', '.join(extra)} {where}; "
            "remove such rows, or write it into the content"
        )
    return role, content.strip()
