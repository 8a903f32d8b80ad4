"""Finds which bytes of a rollout, of the text that it spells and of a teacher's tokens of that text are the same."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import accumulate

from xtoken_pl.alignment.byte_merge import Run, chained_runs
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.sections import exact_ranges

_INVALID = re.compile("([\udc80-\udcff]+)")  # what `surrogateescape` decodes invalid bytes to


def num_spaces(data: bytes) -> int:
    """Number of spaces at the start."""
    return len(data) - len(data.lstrip(b" "))


def without_partial_end(data: bytes) -> bytes:
    """Removes the bytes of a character at the end that is not complete."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    waiting, _ = decoder.getstate()
    return data.removesuffix(waiting)


def read_utf8(data: bytes) -> tuple[str, list[Run]]:
    """Reads bytes as UTF-8, with U+FFFD for what is not valid; returns the text and the runs of equal bytes."""
    text, runs, start, length = list[str](), list[Run](), 0, 0
    for piece in _INVALID.split(data.decode(errors="surrogateescape")):
        given = piece.encode(errors="surrogateescape")
        text.append(given.decode(errors="replace"))
        read = text[-1].encode()
        if given == read:
            runs.append((start, length, len(read)))
        start, length = start + len(given), length + len(read)
    return "".join(text), runs


def token_runs(vocabulary: CanonicalVocabulary, text: str, ids: Sequence[int], *, is_first: bool) -> list[Run]:
    """Finds the runs of equal bytes of a text and of its tokens.

    Args:
        vocabulary: Vocabulary of the tokenizer.
        text: The text.
        ids: Its token ids.
        is_first: Whether it was encoded like the start of a text, rather than within one.
    """
    tokens = [vocabulary.token_bytes[token] for token in ids]
    given, read = text.encode(), b"".join(tokens)
    num_added = len(read) - len(given)
    if num_added in {0, int(is_first and vocabulary.components.dummy_prefix)} and read.endswith(given):
        return [(0, num_added, len(given))]
    # A normalizer rewrote the text: the tokenizer knows which characters each token comes from.
    whole_text = nullcontext(vocabulary.tokenizer.backend_tokenizer)
    with whole_text if is_first else vocabulary.mid_text_backend() as own, exact_ranges(own) as backend:
        encoding = backend.encode(text, add_special_tokens=False)
    assert encoding.ids == list(ids), "a tokenizer gives a text the same ids every time"
    places = [0, *accumulate(len(character.encode()) for character in text)]
    ends = [0, *accumulate(map(len, tokens))]
    runs = list[Run]()
    for first, last, low, high in _groups(encoding.offsets):
        start, other_start, part = places[low], ends[first], given[places[low] : places[high]]
        if first == 0 and is_first and read[: ends[last]] == b" " + part:
            other_start += 1
        elif read[other_start : ends[last]] != part:
            continue
        if runs and start - runs[-1][0] == other_start - runs[-1][1] == runs[-1][2]:
            start, other_start, _ = runs.pop()
        runs.append((start, other_start, places[high] - start))
    return runs


def _groups(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Yields the smallest groups of tokens that share no character with others: tokens [a, b), characters [c, d)."""
    first, low, high = 0, 0, 0
    for number, (start, end) in enumerate(ranges):
        if number and start >= high:
            yield first, number, low, high
        if not number or start >= high:
            first, low = number, start
        high = max(high, end)
    if ranges:
        yield first, len(ranges), low, high


def moved(runs: list[Run], distance: int, length: int) -> list[Run]:
    """Moves the second side of runs by a number of bytes; drops what is then outside of [0, ``length``)."""
    return chained_runs(runs, [(max(0, -distance), max(0, distance), length)])
