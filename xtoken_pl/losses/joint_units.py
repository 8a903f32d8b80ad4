"""Texts that both sides can write along the observed tokens of a span, found before the forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from xtoken_pl.batch import LossPlan, TeacherBatch, TokenBatch
from xtoken_pl.prefix_map.row_tables import Column, RowTables, entries_before
from xtoken_pl.prefix_map.spellings import Spellings
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.ranges import Ints

# U units


@dataclass
class UnitTable(RowTables):
    """The units of all spans of a batch.

    Attributes:
        row: ``[U]`` first student row of the unit's span, increasing.
        place: ``[U]`` number of the unit within its span.
        student_token, student_length: ``[U]`` last student token of the unit, and the number of its student tokens;
            all but the last are the span's observed ones.
        teacher_token, teacher_length: ``[U]`` the same for the teacher.
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


class UnitPlanner:
    """Finds the units of every span that has several tokens on a side.

    Args:
        student, teacher: Vocabularies.
        along_path: Whether units may leave the observed tokens at their last token; otherwise the span itself is its
            only unit.
    """

    def __init__(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, *, along_path: bool) -> None:
        self.along_path = along_path
        if along_path:
            #: The teacher's tokens in student tokens, and the reverse.
            self.spellings = Spellings(teacher, student), Spellings(student, teacher)
            # A special token counts as one symbol on both sides.
            self.symbols = [np.maximum(side.num_bytes, 1) for side in (student, teacher)]

    def plan(self, student: TokenBatch, teacher: TeacherBatch) -> UnitPlan:
        """Makes the plan of a batch."""
        spans = teacher.spans
        is_longer = (spans.student_length > 1) | (spans.teacher_length > 1)
        sides = [
            tuple(values.numpy(force=True) for values in (tokens.labels, first[is_longer], length[is_longer]))
            for tokens, first, length in (
                (student, spans.student_first, spans.student_length),
                (teacher.tokens, spans.teacher_first, spans.teacher_length),
            )
        ]
        (labels, first, length), (other_labels, other_first, other_length) = sides
        index = np.arange(len(first))
        last, other_last = labels[first + length - 1], other_labels[other_first + other_length - 1]
        # Span, last token and number of tokens of the student, and of the teacher.
        units = np.stack((index, last, length, other_last, other_length))  # [5, U]
        if self.along_path:
            ours, theirs = (spellings.along(*side) for spellings, side in zip(self.spellings, sides, strict=True))
            of_teacher = ours.span, ours.last, ours.num_tokens, ours.token, np.ones_like(ours.token)
            of_student = theirs.span, theirs.token, np.ones_like(theirs.token), theirs.last, theirs.num_tokens
            more = np.concatenate((np.stack(of_teacher), np.stack(of_student)), axis=1)
            # A space that only one side has before the text is in no unit of the other.
            num, other_num = (_num_symbols(own, *side) for own, side in zip(self.symbols, sides, strict=True))
            units = np.concatenate((units, more[:, (num == other_num)[more[0]]]), axis=1)
        span, *columns = units[:, np.argsort(units[0], kind="stable")]
        rows, places = first[span], np.arange(len(span)) - np.searchsorted(span, span)
        return UnitPlan(
            reach=np.zeros(len(labels), dtype=np.int64),  # a span reads its own rows alone
            units=UnitTable(
                entries_before({"units": rows}, len(labels)),
                *(torch.from_numpy(column) for column in (rows, places, *columns)),
            ),
            most_units=int(places.max(initial=-1)) + 1,
            most_tokens=int(units[[2, 4]].max(initial=1)),
        )


def _num_symbols(of_token: Ints, labels: Ints, first: Ints, length: Ints) -> Ints:
    """``[S]`` number of symbols of each span's tokens, from those of each token of the vocabulary."""
    before = np.append(0, np.cumsum(of_token[labels]))
    return before[first + length] - before[first]
