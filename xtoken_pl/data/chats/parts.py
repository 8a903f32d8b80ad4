"""Splits a rendered conversation into special tokens and the texts between them, which are tokenized one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from xtoken_pl.data.chats.rendered import RenderedText, Stretch
from xtoken_pl.tokenization import CanonicalVocabulary

#: Parts of a turn that are given to the template: they may spell a special token.
SAID = ("content", "reasoning")


class UnitBytes(NamedTuple):
    """Number of a unit (a called name, or a string of its arguments) and its bytes [start, end) in a text."""

    unit: int
    start: int
    end: int


class Part(NamedTuple):
    """A special token, or a text that is tokenized by itself.

    Attributes:
        text: The text; empty for a special token.
        special: Id of the special token; None for a text.
        stretch: Number of the stretch that it belongs to; None for the template's own text.
        is_first: Whether to encode it like the start of a text, with the space that some tokenizers put there.
        units: Units of tool calls in the text.
    """

    text: str
    special: int | None
    stretch: int | None
    is_first: bool
    units: tuple[UnitBytes, ...] = ()


#: A text, the special token after it, and units of tool calls in the text.
_Piece = tuple[str, int | None, tuple[UnitBytes, ...]]


class SpecialTokens:
    """The special tokens that a template may write.

    Args:
        vocabulary: Vocabulary of the tokenizer.
    """

    def __init__(self, vocabulary: CanonicalVocabulary) -> None:
        self.vocabulary = vocabulary
        added = vocabulary.tokenizer.added_tokens_decoder
        self._ids = {token.content: number for number, token in added.items() if vocabulary.is_special[number]}

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """Pattern of a special token, with the white space that it absorbs; None if there are none."""
        added = self.vocabulary.tokenizer.added_tokens_decoder
        # The longest first.
        tokens = sorted((added[number] for number in self._ids.values()), key=lambda token: -len(token.content))
        patterns = [r"\s*" * token.lstrip + f"({re.escape(token.content)})" + r"\s*" * token.rstrip for token in tokens]
        return re.compile("|".join(patterns)) if patterns else None

    @cached_property
    def add_space(self) -> bool:
        """Whether the tokenizer puts a space before every stretch of text, not only before the first one."""
        if not self._ids or not self.vocabulary.components.dummy_prefix:
            return False
        ids = self.vocabulary.tokenizer(next(iter(self._ids)) + "a", add_special_tokens=False)["input_ids"]
        return b"".join(self.vocabulary.token_bytes[token_id] for token_id in ids).startswith(b" ")

    def cut(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Splits text at special tokens; yields each piece with the special token after it, None after the last."""
        start = 0
        for match in self.pattern.finditer(text) if self.pattern is not None else ():
            assert match.lastindex is not None
            yield text[start : match.start()], self._ids[match[match.lastindex]]
            start = match.end()
        yield text[start:], None


def parts_of(written: RenderedText, special: SpecialTokens) -> Iterator[Part]:
    """Yields the parts of a rendered conversation, in order."""
    is_first = True
    for number, text in _stretches(written):
        stretch = None if number is None else written.stretches[number]
        for piece, token, units in _pieces(stretch, text, special):
            if piece:
                yield Part(piece, None, number, is_first, units)
                is_first = False
            if token is not None:
                yield Part("", token, number, False)
                is_first = special.add_space


def _stretches(written: RenderedText) -> Iterator[tuple[int | None, str]]:
    """Yields the number and the text of each stretch; None for text of the template.

    A space that the template writes before a content or a reasoning goes to it.
    """
    ranges: list[tuple[int | None, int, int]] = []
    position = 0
    for place, stretch in enumerate(written.stretches):
        ranges += [(None, position, stretch.start), (place, stretch.start, stretch.end)]
        position = stretch.end
    filled = [(number, start, end) for number, start, end in ranges if start < end]
    space = ""
    for (number, start, end), (following, _, _) in pairwise([*filled, (None, position, len(written.text))]):
        text = written.text[start:end]
        moves = text.endswith(" ") and _is_said(written, following) and not _is_said(written, number)
        text, space = space + text.removesuffix(" " * moves), " " * moves
        yield number, text
    yield None, written.text[position:]


def _is_said(written: RenderedText, number: int | None) -> bool:
    return number is not None and written.stretches[number].part in SAID


def _pieces(stretch: Stretch | None, text: str, special: SpecialTokens) -> Iterator[_Piece]:
    """Splits a stretch at the special tokens that the template wrote in it."""
    if stretch is not None and stretch.part in SAID:
        yield text, None, ()
        return
    piece, units, position = "", list[UnitBytes](), 0
    for place in [*(() if stretch is None else stretch.units), None]:
        begin, end = (
            (len(text), len(text))
            if place is None or stretch is None
            else (
                place.start - stretch.start,
                place.end - stretch.start,
            )
        )
        *closed, (rest, _) = special.cut(text[position:begin])
        for before, token in closed:
            yield piece + before, token, tuple(units)
            piece, units = "", []
        piece += rest
        if place is not None:
            start, piece = len(piece.encode()), piece + text[begin:end]
            units.append(UnitBytes(place.unit, start, len(piece.encode())))
        position = end
    yield piece, None, tuple(units)
