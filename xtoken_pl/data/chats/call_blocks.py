"""Aligns the tool calls of a turn between the student and a teacher, whose templates write them in different ways.

Names and arguments that both sides write with the same bytes are aligned, and of the text between them what is equal
at its beginning and at its end. Tokens that lie inside such equal bytes form spans; all others are a gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.data.chats.parts import Part, UnitBytes
from xtoken_pl.data.chats.rendered import num_equal
from xtoken_pl.tokenization import CanonicalVocabulary

# Bytes that no text has stand for special tokens: one byte for the student's, another for a teacher's, so that they are
# never equal.
SPECIAL = b"\xff"
_OTHER_SPECIAL = b"\xfe"


class EqualBytes(NamedTuple):
    """Bytes of a student's block and of a teacher's that are equal: [start, end) of both."""

    start: int
    end: int
    other_start: int
    other_end: int


@dataclass(frozen=True)
class CallBlock:
    """The tool calls of a turn as one side writes them.

    Attributes:
        text: Bytes of the tokens, with :data:`SPECIAL` for each special token.
        units: Called names and strings of arguments, in the order of the text.
        first: First token, counted from the start of the conversation.
        num_tokens: Number of tokens, n.
        bounds: ``[n + 1]`` bytes at which the tokens begin and end.
    """

    text: bytes
    units: tuple[UnitBytes, ...]
    first: int
    num_tokens: int
    bounds: NDArray[np.int64]

    @property
    def tokens(self) -> tuple[int, int]:
        """Token range [start, end) of the calls."""
        return self.first, self.first + self.num_tokens


def block_of(vocabulary: CanonicalVocabulary, parts: Sequence[tuple[Part, Sequence[int]]], first: int) -> CallBlock:
    """Puts the calls of a turn together.

    Args:
        vocabulary: Vocabulary of the tokens.
        parts: Texts and special tokens, with their tokens.
        first: First token, counted from the start of the conversation.
    """
    text, units, lengths = b"", list[UnitBytes](), [0]
    for part, ids in parts:
        pieces = [SPECIAL if vocabulary.is_special[token] else vocabulary.token_bytes[token] for token in ids]
        given, written = part.text.encode(), b"".join(pieces)
        sizes = list(map(len, pieces))
        if written.startswith(b" ") and not given.startswith(b" "):
            written, sizes[0] = written[1:], sizes[0] - 1  # the space that some tokenizers put before a text
        units += [UnitBytes(unit, start + len(text), end + len(text)) for unit, start, end in _units_in(part, written)]
        text += written
        lengths += sizes
    return CallBlock(text, tuple(units), first, len(lengths) - 1, np.cumsum(lengths, dtype=np.int64))


def _units_in(part: Part, written: bytes) -> Iterator[UnitBytes]:
    """Yields the units of a text that lie before and after what a normalizer rewrote in it."""
    given = part.text.encode()
    head = num_equal(given, written)
    tail = num_equal(given[head:][::-1], written[head:][::-1])
    for unit, start, end in part.units:
        if end <= head:
            yield UnitBytes(unit, start, end)
        elif start >= len(given) - tail:
            yield UnitBytes(unit, start - len(given) + len(written), end - len(given) + len(written))


def call_spans(student: CallBlock, teacher: CallBlock) -> NDArray[np.int64]:
    """Aligns the calls of both sides.

    Returns:
        ``[S, 4]`` spans (student_start, student_end, teacher_start, teacher_end) that hold the same bytes.
    """
    found = [np.empty((0, 4), dtype=np.int64)]
    found += [_spans_in(equal, student.bounds, teacher.bounds) for equal in equal_bytes(student, teacher)]
    return np.concatenate(found) + (
        student.first,
        student.first,
        teacher.first,
        teacher.first,
    )


def _spans_in(equal: EqualBytes, bounds: NDArray[np.int64], other_bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """The spans between neighbouring bytes at which a token ends on both sides."""
    own, other = (
        side[(side >= start) & (side <= end)] - start
        for side, start, end in ((bounds, equal.start, equal.end), (other_bounds, equal.other_start, equal.other_end))
    )
    shared = np.intersect1d(own, other)
    first, other_first = (
        np.searchsorted(bounds, shared + equal.start),
        np.searchsorted(other_bounds, shared + equal.other_start),
    )
    return np.stack((first[:-1], first[1:], other_first[:-1], other_first[1:]), axis=1)


def equal_bytes(student: CallBlock, teacher: CallBlock) -> list[EqualBytes]:
    """Returns the stretches of bytes that both sides write: units, and the text next to them."""
    theirs = teacher.text.replace(SPECIAL, _OTHER_SPECIAL)
    joined: list[EqualBytes] = []
    for part in _equal_parts(student, teacher, theirs):
        if part.start == part.end:
            continue
        if joined and (joined[-1].end, joined[-1].other_end) == (part.start, part.other_start):
            joined[-1] = joined[-1]._replace(end=part.end, other_end=part.other_end)
        else:
            joined.append(part)
    return joined


def _equal_parts(student: CallBlock, teacher: CallBlock, theirs: bytes) -> Iterator[EqualBytes]:
    """Yields units that are equal on both sides, and the equal beginning and end of what stands between two of them."""
    ours = student.text
    units = [
        EqualBytes(own.start, own.end, other.start, other.end)
        for own, other in _same_units(student, teacher)
        if ours[own.start : own.end] == theirs[other.start : other.end]
    ]
    begin, end = EqualBytes(0, 0, 0, 0), EqualBytes(len(ours), len(ours), len(theirs), len(theirs))
    for last, unit in pairwise([begin, *units, end]):
        between, other_between = ours[last.end : unit.start], theirs[last.other_end : unit.other_start]
        head = num_equal(between, other_between)
        yield EqualBytes(last.end, last.end + head, last.other_end, last.other_end + head)
        tail = num_equal(between[head:][::-1], other_between[head:][::-1])
        yield EqualBytes(unit.start - tail, unit.start, unit.other_start - tail, unit.other_start)
        yield unit


def _same_units(student: CallBlock, teacher: CallBlock) -> Iterator[tuple[UnitBytes, UnitBytes]]:
    """Yields the units that stand in the same order on both sides."""
    numbers, others = ([unit.unit for unit in side.units] for side in (student, teacher))
    for match in SequenceMatcher(None, numbers, others, autojunk=False).get_matching_blocks():
        for offset in range(match.size):
            yield student.units[match.a + offset], teacher.units[match.b + offset]
