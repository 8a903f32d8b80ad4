"""Judges the groups of tokens that a trainer compares, by the exact bytes of both sides' tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.alignment import SpanAligner
from xtoken_pl.tokenization import CanonicalVocabulary

# n/m student/teacher tokens, G groups

#: Token positions of the student and of the teacher that a trainer compares with each other.
Group = tuple[Sequence[int], Sequence[int]]
#: Number of bytes of the window that precede the prediction which stands for a group, given where its tokens begin and
#: end.
RowRule = Callable[[NDArray[np.int64], NDArray[np.int64]], int]

#: Which prediction stands for a group. ``first``: the one that the group's first token is drawn from. ``observed``: the
#: one after the first token, which TRL reads since it does not shift its logits. ``bayesian``: the one that the last
#: token is drawn from.
ROW_RULES: Mapping[str, RowRule] = {
    "first": lambda starts, ends: int(starts[0]),
    "observed": lambda starts, ends: int(ends[0]),
    "bayesian": lambda starts, ends: int(starts[-1]),
}


@dataclass(frozen=True)
class Alignment:
    """Counts over windows; tokens are those of both sides that have bytes.

    Attributes:
        num_tokens: Number of tokens.
        num_lost: Number of tokens in no group.
        num_misaligned: Number of tokens in groups whose sides are different bytes of the window.
        num_groups: Number of groups.
        num_coarse: Number of groups that could be divided, because tokens of both sides end inside at the same byte.
        num_unequal_rows: Number of groups whose two predictions follow different bytes of the window.
    """

    num_tokens: int = 0
    num_lost: int = 0
    num_misaligned: int = 0
    num_groups: int = 0
    num_coarse: int = 0
    num_unequal_rows: int = 0

    def __add__(self, other: Alignment) -> Alignment:
        return Alignment(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class _Side:
    """Bytes of a window as one side's tokens write them."""

    stream: bytes
    starts: NDArray[np.int64]  # [n]
    ends: NDArray[np.int64]  # [n]

    @classmethod
    def of(cls, vocabulary: CanonicalVocabulary, ids: Sequence[int]) -> _Side:
        stream, lengths = vocabulary.byte_stream(np.asarray(ids, dtype=np.int64))
        ends = np.cumsum(lengths)
        return cls(stream.tobytes(), ends - lengths, ends)

    @property
    def has_bytes(self) -> NDArray[np.bool_]:
        return self.ends > self.starts

    def text(self, group: Sequence[int]) -> tuple[int, bytes]:
        """First byte of a group, and its bytes."""
        start, end = self.starts[group[0]], self.ends[group[-1]]
        return int(start), self.stream[start:end]


def judge(
    student: CanonicalVocabulary,
    teacher: CanonicalVocabulary,
    student_ids: Sequence[int],
    teacher_ids: Sequence[int],
    groups: Sequence[Group],
    row_rule: RowRule,
) -> Alignment:
    """Counts what is lost, misaligned, coarse, or compared at different places in one window.

    Args:
        student: Vocabulary of the student.
        teacher: Vocabulary of the teacher.
        student_ids: ``[n]`` token ids of the window.
        teacher_ids: ``[m]`` token ids of the same text.
        groups: Positions in these sequences that are compared; consecutive ones on each side, in order.
        row_rule: Which prediction stands for a group.
    """
    sides = _Side.of(student, student_ids), _Side.of(teacher, teacher_ids)
    common = np.intersect1d(sides[0].ends, sides[1].ends)
    covered = [np.zeros(len(side.ends), dtype=bool) for side in sides]
    misaligned = coarse = unequal = 0
    for group in groups:
        for own, positions in zip(covered, group, strict=True):
            own[list(positions)] = True
        texts = [side.text(positions) for side, positions in zip(sides, group, strict=True)]
        if texts[0] != texts[1]:
            misaligned += sum(
                int(side.has_bytes[list(positions)].sum()) for side, positions in zip(sides, group, strict=True)
            )
        else:
            start, text = texts[0]
            coarse += bool(((common > start) & (common < start + len(text))).any())
        own_row, other_row = (
            row_rule(side.starts[list(positions)], side.ends[list(positions)])
            for side, positions in zip(sides, group, strict=True)
        )
        unequal += own_row != other_row
    return Alignment(
        num_tokens=sum(int(side.has_bytes.sum()) for side in sides),
        num_lost=sum(int((side.has_bytes & ~own).sum()) for side, own in zip(sides, covered, strict=True)),
        num_misaligned=misaligned,
        num_groups=len(groups),
        num_coarse=coarse,
        num_unequal_rows=unequal,
    )


def compare(
    student: CanonicalVocabulary, teacher: CanonicalVocabulary, windows: Sequence[Mapping[str, Any]], merge: str
) -> tuple[Alignment, Alignment]:
    """Judges a peer's recorded groups, and the spans of this package over the same tokens.

    Args:
        student: Vocabulary of the student.
        teacher: Vocabulary of the teacher.
        windows: Recorded windows: ``student_ids``, ``teacher_ids``, and ``groups``.
        merge: Name in :data:`ROW_RULES` of the prediction that stands for one of the peer's groups.

    Returns:
        Counts of the peer, and of this package.
    """
    aligner = SpanAligner(student.tokenizer, teacher.tokenizer)
    theirs, ours = Alignment(), Alignment()
    for window in windows:
        ids = window["student_ids"], window["teacher_ids"]
        theirs += judge(student, teacher, *ids, window["groups"], ROW_RULES[merge])
        ours += judge(student, teacher, *ids, own_groups(aligner, *ids), ROW_RULES["first"])
    return theirs, ours


def own_groups(aligner: SpanAligner, student_ids: Sequence[int], teacher_ids: Sequence[int]) -> list[Group]:
    """Returns the spans that this package learns from: a span at the teacher's first token has no prediction."""
    spans = aligner.align(student_ids, teacher_ids).to_array().tolist()
    return [(range(start, end), range(first, last)) for start, end, first, last in spans if first > 0]
