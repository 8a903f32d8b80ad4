"""Texts that both sides can write along the observed tokens of a span, found before the forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch import LossPlan, TeacherBatch, TokenBatch
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.writing import whole_tokens, write_bytes

# N student rows, S spans, U units


class Unit(NamedTuple):
    """A text as both sides write it: the span's first ``length - 1`` observed tokens, and ``token``."""

    student_token: int
    student_length: int
    teacher_token: int
    teacher_length: int


@dataclass
class UnitPlan(LossPlan):
    """The units of all spans of a batch.

    Attributes:
        before: ``[N + 1]`` units of the spans that begin before each student row; stays on the CPU.
        row: ``[U]`` first student row of the unit's span, increasing.
        place: ``[U]`` number of the unit within its span.
        student_token, teacher_token: ``[U]`` last token of the unit on each side.
        student_length, teacher_length: ``[U]`` its number of tokens; all but the last are the span's observed ones.
        most_units, most_tokens: Number of units of a span, and of tokens of a unit, at most.
    """

    before: NDArray[np.int64]
    row: Tensor
    place: Tensor
    student_token: Tensor
    student_length: Tensor
    teacher_token: Tensor
    teacher_length: Tensor
    most_units: int
    most_tokens: int

    def cut(self, student_rows: slice, teacher_rows: slice) -> UnitPlan:
        """Returns the plan of the given rows."""
        first, end = (int(self.before[row]) for row in (student_rows.start, student_rows.stop))
        units = slice(first, end)
        return UnitPlan(
            reach=self.reach[student_rows],
            before=self.before[student_rows.start : student_rows.stop + 1] - first,
            row=self.row[units] - student_rows.start,
            place=self.place[units],
            student_token=self.student_token[units],
            student_length=self.student_length[units],
            teacher_token=self.teacher_token[units],
            teacher_length=self.teacher_length[units],
            most_units=self.most_units,
            most_tokens=self.most_tokens,
        )


class _Spellings:
    """Tokens of one side that the other side writes in several tokens, by all of these but the last."""

    def __init__(self, single: CanonicalVocabulary, common: Tensor, writer: CanonicalVocabulary) -> None:
        is_common = np.isin(np.arange(len(single)), common.numpy())
        tokens = sorted(token for token in whole_tokens(single).values() if not is_common[token])
        self.by_path: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
        for token, written in zip(tokens, write_bytes(writer, [single.token_bytes[t] for t in tokens]), strict=True):
            if len(written) > 1:
                self.by_path[tuple(written[:-1])].append((token, written[-1]))

    def along(self, path: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Yields single tokens that are written as the path's first tokens, at least one, and any last one.

        The token that is written as the whole path is left out.

        Yields:
            The single token, the last token that it is written with, and the number of these tokens.
        """
        for depth in range(1, len(path)):
            for token, last in self.by_path.get(tuple(path[:depth]), ()):
                if depth + 1 < len(path) or last != path[-1]:
                    yield token, last, depth + 1


class UnitPlanner:
    """Finds the units of every span that has several tokens on a side.

    Args:
        student, teacher: Vocabularies.
        common: ``[C]``, ``[C]`` tokens of each side that are common, and no units.
        along_path: Whether units may leave the observed tokens at their last token; otherwise the span itself is its
            only unit.
    """

    def __init__(
        self,
        student: CanonicalVocabulary,
        teacher: CanonicalVocabulary,
        common: tuple[Tensor, Tensor],
        *,
        along_path: bool,
    ) -> None:
        self.spellings: tuple[_Spellings, _Spellings] | None = None
        if along_path:
            self.spellings = (
                _Spellings(teacher, common[1], student),
                _Spellings(student, common[0], teacher),
            )
            # A special token counts as one symbol on both sides.
            self.student_symbols, self.teacher_symbols = (np.maximum(s.num_bytes, 1) for s in (student, teacher))

    def plan(self, student: TokenBatch, teacher: TeacherBatch) -> UnitPlan:
        """Makes the plan of a batch."""
        spans = teacher.spans
        sides = (
            (student.labels, spans.student_first, spans.student_length),
            (
                teacher.tokens.labels,
                spans.teacher_first,
                spans.teacher_length,
            ),
        )
        (labels, first, length), (teacher_labels, teacher_first, teacher_length) = (
            [values.numpy(force=True) for values in side] for side in sides
        )
        found: list[tuple[int, int, Unit]] = []
        for k in np.flatnonzero((length > 1) | (teacher_length > 1)).tolist():
            ours = labels[first[k] : first[k] + length[k]]
            theirs = teacher_labels[teacher_first[k] : teacher_first[k] + teacher_length[k]]
            found += [(int(first[k]), place, unit) for place, unit in enumerate(self._units(ours, theirs))]
        rows = np.array([row for row, _, _ in found], dtype=np.int64)
        columns = np.array([unit for _, _, unit in found], dtype=np.int64).reshape(-1, len(Unit._fields)).T
        return UnitPlan(
            reach=np.zeros(len(labels), dtype=np.int64),  # a span reads its own rows alone
            before=np.searchsorted(rows, np.arange(len(labels) + 1)),
            row=torch.from_numpy(rows),
            place=torch.tensor([place for _, place, _ in found], dtype=torch.int64),
            **{name: torch.from_numpy(values.copy()) for name, values in zip(Unit._fields, columns, strict=True)},
            most_units=max((place + 1 for _, place, _ in found), default=0),
            most_tokens=int(columns[[1, 3]].max(initial=1)),
        )

    def _units(self, student: NDArray[np.int64], teacher: NDArray[np.int64]) -> Iterator[Unit]:
        """Yields the units of a span of the given tokens, the span itself first."""
        yield Unit(int(student[-1]), len(student), int(teacher[-1]), len(teacher))
        if self.spellings is None:
            return
        if self.student_symbols[student].sum() != self.teacher_symbols[teacher].sum():
            return  # a space that only one side has before the text is in no unit of the other
        of_teacher, of_student = self.spellings
        for token, last, length in of_teacher.along(student.tolist()):
            yield Unit(last, length, token, 1)
        for token, last, length in of_student.along(teacher.tolist()):
            yield Unit(token, 1, last, length)
