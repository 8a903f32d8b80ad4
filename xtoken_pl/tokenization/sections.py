"""Encodes a long text in sections: the tokens of the whole text, in bounded memory.

A tokenizer needs a hundred times the memory of the text that it encodes at once. Each section overlaps the one before
it, and the two are joined where both have the same tokens over a long stretch. These are then the tokens of the whole
text: what a tokenizer does at a place depends on the text around it, and two neighbouring BPE tokens that are right in
one text are right next to each other in every text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.tokenization.vocabulary import CanonicalVocabulary

#: Characters that are encoded at once.
SECTION_LENGTH = 2**18


@dataclass(frozen=True)
class Section:
    """Consecutive tokens of a text.

    Attributes:
        ids: ``[n]`` token ids.
        ends: ``[n]`` character of the text at which each token ends; -1 if the next token does not begin there.
    """

    ids: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __add__(self, other: Section) -> Section:
        return Section(np.concatenate((self.ids, other.ids)), np.concatenate((self.ends, other.ends)))

    def split(self, end: int) -> tuple[Section, Section]:
        """Splits after the last token that ends at character ``end``."""
        place = _after(self.ends, end)
        return Section(self.ids[:place], self.ends[:place]), Section(self.ids[place:], self.ends[place:])


def encode_in_sections(
    vocabulary: CanonicalVocabulary, text: str, section_length: int = SECTION_LENGTH
) -> Iterator[Section]:
    """Encodes a text as :meth:`CanonicalVocabulary.encode` does, section by section.

    Where two sections do not agree (a long run of one character, say), the earlier one is encoded again with twice the
    length.

    Args:
        vocabulary: Vocabulary of the tokenizer.
        text: Text of any length.
        section_length: Number of characters that are encoded at once; neighbouring sections share a 32nd of it.
    """
    overlap = section_length // 32
    current, emitted = _Encoded.of(vocabulary, text, 0, section_length), 0
    while current.stop < len(text):
        begin = current.last_end(current.stop - overlap)
        following, join = None, None
        if begin is not None and begin > current.start:
            following = _Encoded.of(vocabulary, text, begin, current.stop - overlap + section_length)
            join = _last_common_end(current, following, overlap)
        if following is None or join is None:
            current = _Encoded.of(vocabulary, text, current.start, 2 * current.stop - current.start)
            continue
        yield current.between(emitted, join)
        current, emitted = following, join
    yield current.between(emitted, None)


@dataclass(frozen=True)
class _Encoded:
    """Tokens of ``text[start:stop]``, with their ranges in the text and the number of the word that each belongs to."""

    start: int
    stop: int
    ids: NDArray[np.int64]
    ranges: NDArray[np.int64]  # [n, 2]
    words: NDArray[np.int64]

    @classmethod
    def of(cls, vocabulary: CanonicalVocabulary, text: str, start: int, stop: int) -> _Encoded:
        stop = min(stop, len(text))
        with exact_ranges(vocabulary.tokenizer.backend_tokenizer) as backend:
            encoding = backend.encode_batch([text[start:stop]], add_special_tokens=False)[0]
        words = [-1 if word is None else word for word in encoding.word_ids]
        ranges = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + start
        return cls(start, stop, np.array(encoding.ids, dtype=np.int64), ranges, np.array(words, dtype=np.int64))

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        ends = self.ranges[:, 1]
        # Two tokens may share a character; a character that a normalizer joined to the one before it is in no token.
        return np.where(ends == np.append(self.ranges[1:, 0], self.stop), ends, -1)

    def last_end(self, before: int) -> int | None:
        """Last character, at most ``before``, at which a token ends: where a word ends, if there is such a place."""
        fits = (self.ends <= before) & (self.ends >= 0)
        is_word_end = np.append(np.diff(self.words) != 0, True)
        places = np.flatnonzero(fits & is_word_end)
        places = places if len(places) else np.flatnonzero(fits)
        return int(self.ranges[places[-1], 1]) if len(places) else None

    def between(self, start: int, end: int | None) -> Section:
        first = _after(self.ends, start) if start > self.start else 0
        return Section(self.ids[first:], self.ends[first:]) if end is None else self._section(first, end)

    def _section(self, first: int, end: int) -> Section:
        last = _after(self.ends, end)
        return Section(self.ids[first:last], self.ends[first:last])


def _after(ends: NDArray[np.int64], end: int) -> int:
    """Number of tokens up to the last one that ends at character ``end``."""
    places = np.flatnonzero(ends == end)
    assert len(places), "a text is split where a token ends"
    return int(places[-1]) + 1


def _last_common_end(current: _Encoded, following: _Encoded, overlap: int) -> int | None:
    """Last end of a stretch of equal tokens, at least a quarter of the overlap long; None if there is none.

    The tokens at the end of ``current`` and at the start of ``following`` may differ from those of the whole text, so
    a quarter of the overlap is left out on each side.
    """
    low, high = following.start + overlap // 4, current.stop - overlap // 4
    common = np.intersect1d(current.ends, following.ends)
    common = common[(common >= low) & (common <= high)]
    if not len(common) or common[-1] - common[0] < overlap // 4:
        return None
    (first, last), (other_first, other_last) = (
        (_after(side.ends, int(common[0])), _after(side.ends, int(common[-1]))) for side in (current, following)
    )
    is_equal = (
        np.array_equal(current.ids[first:last], following.ids[other_first:other_last])
        and np.array_equal(current.ranges[first:last], following.ranges[other_first:other_last])
        and np.array_equal(np.diff(current.words[first:last]), np.diff(following.words[other_first:other_last]))
    )
    return int(common[-1]) if is_equal else None


@contextmanager
def exact_ranges(backend: Any) -> Iterator[Any]:
    """Sets a tokenizer to encode special tokens as text and to give the whole range of every token.

    Some post-processors leave white space out of the ranges.
    """
    before = backend.encode_special_tokens, backend.post_processor
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens, backend.post_processor = True, None
    try:
        yield backend
    finally:
        backend.encode_special_tokens, backend.post_processor = before
