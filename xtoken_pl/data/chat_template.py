"""Tokenizes conversations with a side's own chat template and locates the content of each message in the ids."""

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

# Placeholder for a message's content, used to find the template's own text: private use characters, which no template
# writes or trims.
_MARK = "\ue0c0{}\ue0c1"
# Some templates write today's date; Llama 3's falls back to this one when it has no clock.
_DATE = datetime(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


@dataclass(frozen=True)
class RenderedChat:
    """A conversation tokenized for one side.

    Attributes:
        ids: ``[n]`` token ids, without ``prefix``.
        prefix: Tokens to put before every window: the tokenizer's own prefix (bos), if the template writes it too.
        contents: Token range [start, end) of each message's content; empty if the message has no content.
        turn_ends: Position in ``ids`` of the special token that ends each message; None if the template writes none.
    """

    ids: NDArray[np.int64]
    prefix: tuple[int, ...]
    contents: list[tuple[int, int]]
    turn_ends: list[int | None]


class ChatRenderer:
    """Renders conversations with a tokenizer's chat template.

    Contents are tokenized separately from the template's text, so that no token spans both. The exception is a space
    that the template writes before a content, since most tokenizers merge it into the next word. Only the template
    writes special tokens; a content that spells one is tokenized as plain text.

    Args:
        vocabulary: Vocabulary of the tokenizer.
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
        """The template, as part of a fingerprint."""
        return json.dumps(self.vocabulary.tokenizer.chat_template, sort_keys=True)

    @cached_property
    def _dated_template(self) -> str:
        """The template with a fixed date instead of today's: windows are cached, so they must not depend on the day."""
        try:
            template = self.vocabulary.tokenizer.get_chat_template()
        except ValueError as error:  # several named templates, and none of them is the default
            raise UserError(
                f"the tokenizer of the {self.side} must have a default chat template; name a Jinja file as its "
                f"chat_template. Reason: {error}"
            ) from error
        template = _TODAY.sub(lambda found: repr(_DATE.strftime(found[2])), template)
        if "strftime_now(" in template:
            raise UserError(
                f"a chat template must write the same text every day, but the template of the {self.side} asks for "
                f"today's date in a format that is not a literal; give the {self.side} another chat_template"
            )
        return template

    def render(self, conversations: Sequence[Conversation]) -> list[RenderedChat]:
        """Renders all conversations, in order.

        Raises:
            UserError: If the template rejects a conversation or changes the text of a message.
        """
        cut = [list(self._parts(conversation)) for conversation in conversations]
        texts = [part for parts in cut for part in parts if part.special is None]
        first = self.vocabulary.encode([part.text for part in texts if part.is_first])
        with self.vocabulary.mid_text_backend() as backend:
            inside = [part.text for part in texts if not part.is_first]
            others = [encoding.ids for encoding in backend.encode_batch_fast(inside, add_special_tokens=False)]
        encoded = {True: iter(first), False: iter(others)}
        return [
            self._put_together(len(conversation.turns), parts, encoded)
            for conversation, parts in zip(conversations, cut, strict=True)
        ]

    # The template's own text -----------------------------------------------------------------------------------------

    def _around(self, conversation: Conversation) -> list[str]:
        """Text that the template writes before, between and after the non-empty contents."""
        contents = [turn.content for turn in conversation.turns]
        marks = [_MARK.format(index) if content else "" for index, content in enumerate(contents)]
        rendered, start = self._apply(conversation, marks), 0
        around: list[str] = []
        for mark in filter(None, marks):
            place = rendered.find(mark, start)
            end = place if place >= 0 else len(rendered)
            around.append(rendered[start:end])
            start = end + len(mark)
        around.append(rendered[start:])
        said = [*filter(None, contents), ""]
        ours = "".join(before + content for before, content in zip(around, said, strict=True))
        if ours != self._apply(conversation, contents):
            raise UserError(
                f"a chat template must write every message once, in order and unchanged, but the template of the "
                f"{self.side} drops, moves or changes a message, or depends on its content, in {conversation}; give "
                f"the {self.side} another chat_template, or remove such conversations"
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
                f"the chat template of the {self.side} is not valid Jinja: {error.message}, in line {error.lineno}; "
                "fix it, or give another chat_template"
            ) from error
        except (TemplateError, TypeError) as error:  # TypeError: the template adds a string and None, say
            raise UserError(
                f"the chat template of the {self.side} rejects {conversation}, with the roles "
                f"{[turn.role for turn in conversation.turns]}: {str(error).rstrip('.')}. Give the {self.side} another "
                "chat_template, or remove such conversations"
            ) from error
        return rendered

    # Tokens ----------------------------------------------------------------------------------------------------------

    def _parts(self, conversation: Conversation) -> Iterator[_Part]:
        """Splits a rendered conversation into special tokens and stretches of template or content text."""
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
                    is_first = self._adds_space_after_special
            if index is not None:
                yield _Part(space + conversation.turns[index].content, None, index, is_first)
                is_first = False

    def _cut(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Splits text at special tokens; yields each piece with the special token after it."""
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
        # The longest first; some absorb the white space around them.
        tokens = sorted((added[token_id] for token_id in self._special_ids.values()), key=lambda t: -len(t.content))
        return re.compile(
            "|".join(
                r"\s*" * token.lstrip + f"({re.escape(token.content)})" + r"\s*" * token.rstrip for token in tokens
            )
        )

    @cached_property
    def _adds_space_after_special(self) -> bool:
        """Whether the tokenizer puts a space before every stretch of text, not only before the first one."""
        if not self._special_ids or not self.vocabulary.components.dummy_prefix:
            return False
        ids = self.vocabulary.tokenizer(next(iter(self._special_ids)) + "a", add_special_tokens=False)["input_ids"]
        return b"".join(self.vocabulary.token_bytes[token_id] for token_id in ids).startswith(b" ")

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
                # A token that holds only the template's space is not content.
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
        """Position of the next special token, if only white space precedes it."""
        for place in range(start, len(ids)):
            if self.vocabulary.is_special[ids[place]]:
                return place
            if self.vocabulary.token_bytes[ids[place]].strip():
                break
        return None


class _Part(NamedTuple):
    """A special token, or a stretch of text from the template or from the content of a turn.

    ``is_first``: encode it like the start of a text, with the space that some tokenizers put there.
    """

    text: str
    special: int | None
    turn: int | None
    is_first: bool
