"""Tokenizes a long text piece by piece; a piece ends at a character where a token ends on every side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.sections import Section, encode_in_sections

# Number of characters on both sides of a cut that should be ASCII, which normalizers seldom rewrite.
_AROUND = 32


class TextPiece(NamedTuple):
    """Tokens of a piece of a text by side, and the character at which the piece ends."""

    ids: dict[str, NDArray[np.int64]]
    end: int


def text_pieces(text: str, sides: Mapping[str, CanonicalVocabulary], section_length: int) -> Iterator[TextPiece]:
    """Tokenizes a text for every side, piece by piece, in bounded memory.

    Args:
        text: Text of any length.
        sides: Vocabularies by side.
        section_length: Number of characters that are tokenized at once.

    Returns:
        Pieces that hold the same characters on every side; their tokens are those of the whole text.
    """
    sections = {name: encode_in_sections(side, text, section_length) for name, side in sides.items()}
    waiting = {name: next(side) for name, side in sections.items()}
    while sections:
        end = _last_common_end(text, waiting)
        if end is not None:
            split = {name: section.split(end) for name, section in waiting.items()}
            yield TextPiece({name: before.ids for name, (before, _) in split.items()}, end)
            waiting = {name: after for name, (_, after) in split.items()}
        behind = min(sections, key=lambda name: waiting[name].ends.max(initial=0))
        following = next(sections[behind], None)
        if following is None:
            del sections[behind]
        else:
            waiting[behind] += following
    yield TextPiece({name: section.ids for name, section in waiting.items()}, len(text))


def _last_common_end(text: str, sections: Mapping[str, Section]) -> int | None:
    """Last character before the end of the text at which a token ends on every side; None if there is none."""
    ends = reduce(np.intersect1d, (section.ends for section in sections.values()))
    ends = ends[(ends > 0) & (ends < len(text))][::-1]
    plain = (end for end in ends.tolist() if text[max(0, end - _AROUND) : end + _AROUND].isascii())
    return next(plain, int(ends[0])) if len(ends) else None
