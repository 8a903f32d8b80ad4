"""Texts that both sides can write along the observed tokens of a span, found before the forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch import LossPlan, TeacherBatch, TokenBatch
from xtoken_pl.prefix_map.row_tables import Column, RowTables, entries_before
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.writing import whole_tokens, write_bytes

# U units


class Unit(NamedTuple):
    """A text as both sides write it: the span's first ``length - 1`` observed tokens, and ``token``."""

    student_token: int
    student_length: int
    teacher_token: int
    teacher_length: int


@dataclass
class UnitTable(RowTables):
    """The units of all spans of a batch.

    Attributes:
        row: ``[U]`` first student row of the unit's span, increasing.
        place: ``[U]`` number of the unit within its span.
        student_token, teacher_token: ``[U]`` last token of the unit on each side.
        student_length, teacher_length: ``[U]`` its number of tokens; all but the last are the span's observed ones.
    """

    row: Annotated[Tensor, Column("units", "student")]
    place: Annotated[Tensor, Column("units")]
    student_token: Annotated[Tensor, Column("units")]
    student_length: Annotated[Tensor, Column("units")]
    teacher_token: Annotated[Tensor, Column("units")]
    teacher_length: Annotated[Tensor, Column("units")]


@dataclass
class UnitPlan(LossPlan):
    """The units of all spans of a batch.

    Attributes:
        units: One entry for each unit.
        most_units, most_tokens: Number of units of a span, and of tokens of a unit, at most.
    """

    units: UnitTable
    most_units: int
    most_tokens: int

    def cut(self, student_rows: slice, teacher_rows: slice) -> UnitPlan:
        """Returns the plan of the given rows."""
        units = self.units.cut(student_rows, teacher_rows)
        return UnitPlan(self.reach[student_rows], units, self.most_units, self.most_tokens)


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
            (teacher.tokens.labels, spans.teacher_first, spans.teacher_length),
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
        places = np.array([place for _, place, _ in found], dtype=np.int64)
        units = np.array([unit for _, _, unit in found], dtype=np.int64).reshape(-1, len(Unit._fields))
        columns = {"row": rows, "place": places, **dict(zip(Unit._fields, units.T.copy(), strict=True))}
        return UnitPlan(
            reach=np.zeros(len(labels), dtype=np.int64),  # a span reads its own rows alone
            units=UnitTable(
                entries_before({"units": rows}, len(labels)),
                **{name: torch.from_numpy(column) for name, column in columns.items()},
            ),
            most_units=int(places.max(initial=-1)) + 1,
            most_tokens=int(units[:, [1, 3]].max(initial=1)),
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
