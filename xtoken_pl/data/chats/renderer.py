"""Tokenizes conversations with a side's own chat template and locates what each message says in the ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.data.chats.answers import AnswerFormat
from xtoken_pl.data.chats.call_blocks import CallBlock, block_of
from xtoken_pl.data.chats.conversations import Conversation
from xtoken_pl.data.chats.jinja_template import ChatTemplate
from xtoken_pl.data.chats.parts import SAID, Part, SpecialTokens, parts_of
from xtoken_pl.data.chats.rendered import RenderedText
from xtoken_pl.tokenization import CanonicalVocabulary


@dataclass
class TurnTokens:
    """Tokens of a turn: ranges [start, end), which are (0, 0) for what it lacks.

    Attributes:
        content: Its content.
        reasoning: Its reasoning.
        opening: Text that the assistant writes before its reasoning.
        closing: Text that the assistant writes after its reasoning.
        opening_text, closing_text: Their text.
        calls: Its tool calls.
        end: Position of the special token that ends the turn; None if the template writes none.
    """

    content: tuple[int, int] = (0, 0)
    reasoning: tuple[int, int] = (0, 0)
    opening: tuple[int, int] = (0, 0)
    closing: tuple[int, int] = (0, 0)
    opening_text: str = ""
    closing_text: str = ""
    calls: CallBlock | None = None
    end: int | None = None

    @property
    def thought(self) -> tuple[int, int]:
        """The reasoning with its opening and closing, and a space before it."""
        given = [part for part in (self.opening, self.reasoning, self.closing) if part[0] < part[1]]
        return (given[0][0], given[-1][1]) if given else (0, 0)


@dataclass(frozen=True)
class RenderedChat:
    """A conversation tokenized for one side.

    Attributes:
        ids: ``[n]`` token ids, without ``prefix``.
        prefix: Tokens to put before every window: the tokenizer's own prefix (bos), if the template writes it too.
        turns: Tokens of each turn, positions in ``ids``.
    """

    ids: NDArray[np.int64]
    prefix: tuple[int, ...]
    turns: list[TurnTokens]


class ChatRenderer:
    """Renders conversations with a tokenizer's chat template.

    Contents are tokenized separately from the template's text, so that no token spans both. The exception is a space
    that the template writes before a content, since most tokenizers merge it into the next word. The same holds for
    reasoning. The tool calls of a turn are tokenized as one text, as a model writes them. Only the template writes
    special tokens; a content or an argument that spells one is tokenized as plain text.

    Args:
        vocabulary: Vocabulary of the tokenizer.
        side: ``student`` or ``teacher 'NAME'``, for messages.

    Raises:
        UserError: If the tokenizer has no chat template.
    """

    def __init__(self, vocabulary: CanonicalVocabulary, side: str) -> None:
        self.vocabulary = vocabulary
        self._template = ChatTemplate(vocabulary, side)
        self._special = SpecialTokens(vocabulary)

    @property
    def template(self) -> str:
        """The template, as part of a fingerprint."""
        return self._template.description

    @cached_property
    def answer_format(self) -> AnswerFormat:
        """How the template surrounds an answer."""
        return AnswerFormat.from_template(self, self._template, self._special)

    def render(self, conversations: Sequence[Conversation]) -> list[RenderedChat]:
        """Renders all conversations, in order.

        Raises:
            UnrenderableError: If the template rejects a conversation or changes what is said.
        """
        return self.tokenize([self.write(conversation) for conversation in conversations])

    def write(self, conversation: Conversation) -> RenderedText:
        """Writes a conversation as text.

        Raises:
            UnrenderableError: If the template rejects the conversation or changes what is said.
        """
        return self._template.write(conversation, self._special.pattern)

    def write_prompt(self, conversation: Conversation) -> RenderedText:
        """Writes what the assistant is to answer as text, with the template's generation prompt at its end.

        A space at the very end belongs to the answer, as it does where an answer follows.

        Args:
            conversation: The conversation; the assistant's messages at its end are left out.

        Raises:
            UnrenderableError: If the template rejects the conversation or changes what is said.
        """
        written = self._template.write(conversation.before_answer, self._special.pattern, is_prompt=True)
        written.text = written.text.removesuffix(" ")
        return written

    def tokenize(self, written: Sequence[RenderedText]) -> list[RenderedChat]:
        """Tokenizes conversations."""
        cut = [list(parts_of(text, self._special)) for text in written]
        texts = [part for parts in cut for part in parts if part.special is None]
        first = self.vocabulary.encode([part.text for part in texts if part.is_first])
        with self.vocabulary.mid_text_backend() as backend:
            inside = [part.text for part in texts if not part.is_first]
            others = [encoding.ids for encoding in backend.encode_batch_fast(inside, add_special_tokens=False)]
        encoded = {True: iter(first), False: iter(others)}
        return [self._put_together(text, parts, encoded) for text, parts in zip(written, cut, strict=True)]

    def _put_together(
        self, written: RenderedText, parts: Sequence[Part], encoded: dict[bool, Iterator[list[int]]]
    ) -> RenderedChat:
        ids: list[int] = []
        starts: dict[int, int] = {}  # by number of the stretch
        pieces: dict[int, list[tuple[Part, list[int]]]] = {}
        for part in parts:
            own = [part.special] if part.special is not None else next(encoded[part.is_first])
            if part.stretch is not None:
                starts.setdefault(part.stretch, len(ids))
                pieces.setdefault(part.stretch, []).append((part, own))
            ids += own
        prefix = self.vocabulary.prefix_ids
        prefix = prefix if tuple(ids[: len(prefix)]) == prefix else ()
        ids = ids[len(prefix) :]
        turns = [TurnTokens() for _ in written.marked]
        for number, start in starts.items():
            stretch, tokens = written.stretches[number], [token for _, own in pieces[number] for token in own]
            turn, low, high = turns[stretch.turn], start - len(prefix), start - len(prefix) + len(tokens)
            turn.end = self._turn_end(ids, high) if low < high else None
            if stretch.part == "calls":
                turn.calls = block_of(self.vocabulary, pieces[number], low)
                continue
            if stretch.part not in SAID:
                setattr(turn, f"{stretch.part}_text", written.text[stretch.start : stretch.end])
            # A token that holds only the template's space is not content.
            low += self._num_spaces(tokens) if stretch.part in SAID else 0
            setattr(turn, stretch.part, (low, high) if low < high else (0, 0))
        return RenderedChat(np.array(ids, dtype=np.int64), prefix, turns)

    def _num_spaces(self, tokens: Sequence[int]) -> int:
        """Number of tokens at the start that hold only spaces; 0 if all do."""
        return next((place for place, token in enumerate(tokens) if self.vocabulary.token_bytes[token].strip(b" ")), 0)

    def _turn_end(self, ids: list[int], start: int) -> int | None:
        """Position of the next special token, if only white space precedes it."""
        for place in range(start, len(ids)):
            if self.vocabulary.is_special[ids[place]]:
                return place
            if self.vocabulary.token_bytes[ids[place]].strip():
                break
        return None
