"""Categories of tokens, by what their bytes spell."""

from __future__ import annotations

import string
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.tokenization import CanonicalVocabulary

Category = Literal[
    "numerals_1",
    "numerals_2",
    "numerals_3",
    "numerals_4_or_more",
    "letters",
    "punctuation",
    "whitespace",
    "non_ascii",
    "mixed",
    "byte_pieces",
    "special",
]
CATEGORIES: tuple[Category, ...] = get_args(Category)

_PUNCTUATION = string.punctuation.encode()
_NUMERALS: tuple[Category, ...] = ("numerals_1", "numerals_2", "numerals_3", "numerals_4_or_more")


def categorize(vocabulary: CanonicalVocabulary) -> NDArray[np.int64]:
    """Assigns every token an index into :data:`CATEGORIES`, ``[V]``; -1 for unused ids.

    Numerals (by number of digits), letters and punctuation are ASCII, with or without a space in front; ``mixed`` is
    ASCII of several kinds, ``non_ascii`` has a byte beyond ASCII. ``byte_pieces`` are the ``<0xHH>`` of a SentencePiece
    tokenizer, for any byte: text seldom uses them.
    """
    place = {category: index for index, category in enumerate(CATEGORIES)}
    found = np.array([place[_category(text)] for text in vocabulary.token_bytes], dtype=np.int64)
    found[vocabulary.is_byte_piece] = place["byte_pieces"]
    return np.where(vocabulary.exists, found, -1)


def _category(text: bytes) -> Category:
    if not text:
        return "special"
    if not text.isascii():
        return "non_ascii"
    if text.isspace():
        return "whitespace"
    word = text.removeprefix(b" ")
    if word.isdigit():
        return _NUMERALS[min(len(word), len(_NUMERALS)) - 1]
    if word.isalpha():
        return "letters"
    return "mixed" if word.translate(None, _PUNCTUATION) else "punctuation"
