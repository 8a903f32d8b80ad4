"""Conversations as token ids, by one side's own chat template, and where in them each message's content stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from numpy.typing import NDArray

from xtoken_pl.data.conversations import Conversation
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

# What stands for a message's content while the template's own text is found: characters of the private use area, which
# no template writes or trims.
_MARK = "\ue0c0{}\ue0c1"
# Some templates write today's date; Llama 3's, where no clock is at hand, writes this one.
_DATE = datetime(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


@dataclass(frozen=True)
class RenderedChat:
    """A conversation under one tokenizer.

    Attributes:
        ids: ``[n]`` token ids, without ``prefix``.
        prefix: What stands before them in every window: what the tokenizer puts before a text, if the template does.
        contents: By message, the first token of its content, and the one behind the last; equal where it has none.
        turn_ends: By message, the special token that ends it, None where the template writes none.
    """

    ids: NDArray[np.int64]
    prefix: tuple[int, ...]
    contents: list[tuple[int, int]]
    turn_ends: list[int | None]


class ChatRenderer:
    """Renders conversations by a tokenizer's chat template.

    Contents are tokenized apart from the template's text, so that no token belongs to both; a space that the template
    writes before a content is the exception, since most tokenizers join it with a word. The template's special tokens
    are special, while a content that spells one is text.

    Args:
        vocabulary: Of the tokenizer.
        side: ``student`` or ``teacher 'NAME'``, for messages.

    Raises:
        UserError: If the tokenizer has no chat template.
    """

    def __init__(self, vocabulary: CanonicalVocabulary, side: str) -> None:
        self.vocabulary = vocabulary
        self.side = side
        if not vocabulary.tokenizer.chat_template:
            raise UserError(
                f"conversations need a chat template on every side, and the tokenizer of the {side} "
                f"({vocabulary.name!r}) has none; name a Jinja file as its chat_template, or give a model whose "
                "tokenizer has one"
            )

    @property
    def template(self) -> str:
        """What tells templates apart."""
        return json.dumps(self.vocabulary.tokenizer.chat_template, sort_keys=True)

    @cached_property
    def _dated_template(self) -> str:
        """The template with one date in place of today's: windows are stored, and are the same on every day."""
        template = _TODAY.sub(
            lambda found: repr(_DATE.strftime(found[2])), self.vocabulary.tokenizer.get_chat_template()
        )
        if "strftime_now(" in template:
            raise UserError(
                f"a chat template must write the same on every day, but that of the {self.side} asks for the date in a "
                f"format that is not a literal; give the {self.side} another chat_template"
            )
        return template

    def render(self, conversations: Sequence[Conversation]) -> list[RenderedChat]:
        """All of them, in order.

        Raises:
            UserError: If the template refuses a conversation, or writes a message otherwise than it is.
        """
        cut = [list(self._parts(conversation)) for conversation in conversations]
        texts = [part for parts in cut for part in parts if part.special is None]
        encoded = {True: iter(self._encode_first(texts)), False: iter(self._encode_inside(texts))}
        return [
            self._put_together(len(conversation.turns), parts, encoded)
            for conversation, parts in zip(conversations, cut, strict=True)
        ]

    # The template's own text -----------------------------------------------------------------------------------------

    def _around(self, conversation: Conversation) -> list[str]:
        """What the template writes before, between and behind the contents that are not empty."""
        contents = [turn.content for turn in conversation.turns]
        marks = [_MARK.format(index) if content else "" for index, content in enumerate(contents)]
        rest = self._apply(conversation, marks)
        around: list[str] = []
        for mark in filter(None, marks):
            before, _, rest = rest.partition(mark)
            around.append(before)
        around.append(rest)
        said = [*filter(None, contents), ""]
        ours = "".join(before + content for before, content in zip(around, said, strict=True))
        if ours != self._apply(conversation, contents):
            raise UserError(
                f"a chat template must write every message once, in order and as it is, but that of the {self.side} "
                f"drops, moves or changes what is said, or depends on it, in {conversation}; give the {self.side} "
                "another chat_template, or remove such conversations"
            )
        return around

    def _apply(self, conversation: Conversation, contents: list[str]) -> str:
        messages = [
            {"role": turn.role, "content": content} for turn, content in zip(conversation.turns, contents, strict=True)
        ]
        try:
            rendered: str = self.vocabulary.tokenizer.apply_chat_template(
                messages, tokenize=False, chat_template=self._dated_template
            )
        except TemplateSyntaxError as error:
            raise UserError(
                f"the chat template of the {self.side} is no Jinja template: {error.message}, in line {error.lineno}; "
                "mend it, or give another chat_template"
            ) from error
        except TemplateError as error:
            raise UserError(
                f"the chat template of the {self.side} refuses {conversation}, with the roles "
                f"{[turn.role for turn in conversation.turns]}: {str(error).rstrip('.')}. Give the {self.side} another "
                "chat_template, or remove such conversations"
            ) from error
        return rendered

    # Tokens ----------------------------------------------------------------------------------------------------------

    def _parts(self, conversation: Conversation) -> Iterator[_Part]:
        """Special tokens of the template, and stretches of its text and of contents."""
        is_first = True
        indices = [index for index, turn in enumerate(conversation.turns) if turn.content]
        for before, index in zip(self._around(conversation), [*indices, None], strict=True):
            space = " " if index is not None and before.endswith(" ") else ""
            for text, special in self._cut(before.removesuffix(space)):
                if text:
                    yield _Part(text, None, None, is_first)
                    is_first = False
                if special is not None:
                    yield _Part("", special, None, False)
                    is_first = self._prefixes_behind_special
            if index is not None:
                yield _Part(space + conversation.turns[index].content, None, index, is_first)
                is_first = False

    def _cut(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Text and the special token behind it."""
        start = 0
        for match in self._special_pattern.finditer(text) if self._special_ids else ():
            assert match.lastindex is not None
            yield text[start : match.start()], self._special_ids[match[match.lastindex]]
            start = match.end()
        yield text[start:], None

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        added = self.vocabulary.tokenizer.added_tokens_decoder
        return {token.content: token_id for token_id, token in added.items() if self.vocabulary.is_special[token_id]}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        added = self.vocabulary.tokenizer.added_tokens_decoder
        # The longest first; some take the white space beside them along.
        tokens = sorted((added[token_id] for token_id in self._special_ids.values()), key=lambda t: -len(t.content))
        return re.compile(
            "|".join(
                r"\s*" * token.lstrip + f"({re.escape(token.content)})" + r"\s*" * token.rstrip for token in tokens
            )
        )

    @cached_property
    def _prefixes_behind_special(self) -> bool:
        """Whether the tokenizer puts a space before every stretch of text, and not before the first one only."""
        if not self._special_ids or not self.vocabulary.components.dummy_prefix:
            return False
        ids = self.vocabulary.tokenizer(next(iter(self._special_ids)) + "a", add_special_tokens=False)["input_ids"]
        return b"".join(self.vocabulary.token_bytes[token_id] for token_id in ids).startswith(b" ")

    def _encode_first(self, parts: Sequence[_Part]) -> list[list[int]]:
        return self.vocabulary.encode([part.text for part in parts if part.is_first])

    def _encode_inside(self, parts: Sequence[_Part]) -> list[list[int]]:
        with self.vocabulary.mid_text_backend() as backend:
            texts = [part.text for part in parts if not part.is_first]
            return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _put_together(
        self, num_turns: int, parts: Sequence[_Part], encoded: dict[bool, Iterator[list[int]]]
    ) -> RenderedChat:
        ids: list[int] = []
        contents = [(0, 0)] * num_turns
        for part in parts:
            if part.special is not None:
                ids.append(part.special)
                continue
            written = next(encoded[part.is_first])
            if part.turn is not None:
                # A token that is the template's space is no content.
                first = next(
                    (i for i, token in enumerate(written) if self.vocabulary.token_bytes[token].strip(b" ")), 0
                )
                contents[part.turn] = (len(ids) + first, len(ids) + len(written))
            ids += written
        prefix = self.vocabulary.prefix_ids
        prefix = prefix if tuple(ids[: len(prefix)]) == prefix else ()
        contents = [(low - len(prefix), high - len(prefix)) if low < high else (0, 0) for low, high in contents]
        ids = ids[len(prefix) :]
        ends = [self._turn_end(ids, high) if low < high else None for low, high in contents]
        return RenderedChat(np.array(ids, dtype=np.int64), prefix, contents, ends)

    def _turn_end(self, ids: list[int], start: int) -> int | None:
        """The special token that follows, behind nothing but white space."""
        for place in range(start, len(ids)):
            if self.vocabulary.is_special[ids[place]]:
                return place
            if self.vocabulary.token_bytes[ids[place]].strip():
                break
        return None


class _Part(NamedTuple):
    """A special token, or a stretch of text: of the template, or of the content of a turn.

    ``is_first``: it is encoded as a whole text is, with the space that some tokenizers put before one.
    """

    text: str
    special: int | None
    turn: int | None
    is_first: bool
