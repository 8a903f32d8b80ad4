"""Finds pairs of tokens that end a span of several tokens as the observed ones do, before the forward pass."""

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

# K compared spans, X excluded pairs, U spans that are not one-to-one, E cells


@dataclass
class SpanCells(RowTables):
    """Rows and tokens of each span that are compared.

    Attributes:
        first_student, first_teacher: ``[K]`` first rows of the spans whose common tokens are compared.
        excluded_span: ``[X]`` index of a compared span; excluded_pair: ``[X]`` pair of C that it leaves out.
        last_student, last_teacher: ``[U]`` last rows of the spans that are not one-to-one.
        cell_span: ``[E]`` index of such a span; cell_student, cell_teacher: ``[E]`` tokens that may end it.
    """

    first_student: Annotated[Tensor, Column("compared", "student")]
    first_teacher: Annotated[Tensor, Column("compared", "teacher")]
    excluded_span: Annotated[Tensor, Column("excluded", "compared")]
    excluded_pair: Annotated[Tensor, Column("excluded")]
    last_student: Annotated[Tensor, Column("longer", "student")]
    last_teacher: Annotated[Tensor, Column("longer", "teacher")]
    cell_span: Annotated[Tensor, Column("cells", "longer")]
    cell_student: Annotated[Tensor, Column("cells")]
    cell_teacher: Annotated[Tensor, Column("cells")]


@dataclass
class PartitionPlan(LossPlan):
    """The cells of all spans of a batch."""

    cells: SpanCells

    def cut(self, student_rows: slice, teacher_rows: slice) -> PartitionPlan:
        """Returns the plan of the given rows."""
        reach = np.maximum(self.reach[student_rows] - teacher_rows.start, 0)
        return PartitionPlan(reach, self.cells.cut(student_rows, teacher_rows))


class PartitionPlanner:
    """Planner of the partition KL over prefixes for a pair of tokenizers.

    Args:
        student, teacher: Vocabularies of the pair.
        common: ``[C]``, ``[C]`` tokens of each side that are common.
        compares_first: Whether the first rows of spans that are not one-to-one are compared, too.
    """

    def __init__(
        self,
        student: CanonicalVocabulary,
        teacher: CanonicalVocabulary,
        common: tuple[Tensor, Tensor],
        *,
        compares_first: bool,
    ) -> None:
        self.in_teacher, self.in_student = Spellings(student, teacher), Spellings(teacher, student)
        self.compares_first = compares_first
        self.pair_of_student = _places(common[0], len(student))
        self.pair_of_teacher = _places(common[1], len(teacher))

    def plan(self, student: TokenBatch, teacher: TeacherBatch) -> PartitionPlan:
        """Makes the plan of a batch."""
        labels, teacher_labels = student.labels.numpy(force=True), teacher.tokens.labels.numpy(force=True)
        spans = teacher.spans
        first, first_teacher, length, teacher_length = (
            bound.numpy(force=True)
            for bound in (spans.student_first, spans.teacher_first, spans.student_length, spans.teacher_length)
        )
        is_longer = (length > 1) | (teacher_length > 1)
        longer = np.flatnonzero(is_longer)
        last, last_teacher = (first + length - 1)[longer], (first_teacher + teacher_length - 1)[longer]
        of_student = self.in_teacher.along(teacher_labels, first_teacher[longer], teacher_length[longer])
        of_teacher = self.in_student.along(labels, first[longer], length[longer])
        span = np.concatenate((of_student.span, of_teacher.span))
        mine, theirs = np.append(of_student.token, of_teacher.last), np.append(of_student.last, of_teacher.token)
        num_mine = np.append(np.ones_like(of_student.span), of_teacher.num_tokens)
        num_theirs = np.append(of_student.num_tokens, np.ones_like(of_teacher.span))
        # The observed pair takes the place of all that share a token with it.
        others = (mine != labels[last][span]) & (theirs != teacher_labels[last_teacher][span])
        others &= (num_mine == length[longer][span]) & (num_theirs == teacher_length[longer][span])
        span = np.concatenate((span[others], np.arange(len(longer))))
        by_span = np.argsort(span, kind="stable")
        span = span[by_span]
        mine = np.concatenate((mine[others], labels[last]))[by_span]
        theirs = np.concatenate((theirs[others], teacher_labels[last_teacher]))[by_span]

        compared = np.arange(len(first)) if self.compares_first else np.flatnonzero(~is_longer)
        place = np.searchsorted(compared, longer) if self.compares_first else longer[:0]
        excluded = self._excluded(
            place,
            self.pair_of_student[labels[first[longer]]],
            self.pair_of_teacher[teacher_labels[first_teacher[longer]]],
            span,
            self.pair_of_student[mine],
        )
        owner = {
            "compared": first[compared],
            "excluded": first[compared][excluded[0]],
            "longer": last,
            "cells": last[span],
        }
        columns = {
            "first_student": first[compared],
            "first_teacher": first_teacher[compared],
            "excluded_span": excluded[0],
            "excluded_pair": excluded[1],
            "last_student": last,
            "last_teacher": last_teacher,
            "cell_span": span,
            "cell_student": mine,
            "cell_teacher": theirs,
        }
        tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
        cells = SpanCells(entries_before(owner, len(labels)), **tensors)
        return PartitionPlan(np.zeros(len(labels), dtype=np.int64), cells)

    def _excluded(
        self, place: Ints, of_student: Ints, of_teacher: Ints, cell_span: Ints, of_cell: Ints
    ) -> tuple[Ints, Ints]:
        """Index of a compared span and a pair that it leaves out, each once, in the order of the spans."""
        if not len(place):
            return place, place
        spans = np.concatenate((place, place, place[cell_span]))
        pairs = np.concatenate((of_student, of_teacher, of_cell))
        num_pairs = len(self.pair_of_student)  # at most
        keys = np.sort((spans * num_pairs + pairs)[pairs >= 0])
        keys = keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys
        return keys // num_pairs, keys % num_pairs


def _places(tokens: Tensor, size: int) -> Ints:
    """``[size]`` place of each token among the given ones, -1 for none."""
    places = np.full(size, -1)
    places[tokens.numpy()] = np.arange(len(tokens))
    return places
