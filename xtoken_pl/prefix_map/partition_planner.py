"""Finds pairs of tokens that end a span of several tokens as the observed ones do, before the forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from xtoken_pl.batch import LossPlan, TeacherBatch, TokenBatch
from xtoken_pl.prefix_map.prefix_map import PrefixMap
from xtoken_pl.prefix_map.row_tables import Column, RowTables, entries_before
from xtoken_pl.utilities.ranges import Ints, expand

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
        in_teacher: Prefix map of the pair, which spells student tokens in teacher tokens.
        in_student: The map of the exchanged pair, which spells teacher tokens in student tokens.
        common: ``[C]``, ``[C]`` tokens of each side that are common.
        compares_first: Whether the first rows of spans that are not one-to-one are compared, too.
    """

    def __init__(
        self, in_teacher: PrefixMap, in_student: PrefixMap, common: tuple[Tensor, Tensor], *, compares_first: bool
    ) -> None:
        self.in_teacher, self.in_student = in_teacher, in_student
        self.compares_first = compares_first
        self.pair_of_student = _places(common[0], in_teacher.num_student)
        self.pair_of_teacher = _places(common[1], in_teacher.num_teacher)

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
        of_student = _endings(self.in_teacher, teacher_labels, first_teacher[longer], teacher_length[longer])
        of_teacher = _endings(self.in_student, labels, first[longer], length[longer])
        of_student = tuple(column[length[longer][of_student[0]] == 1] for column in of_student)
        of_teacher = tuple(column[teacher_length[longer][of_teacher[0]] == 1] for column in of_teacher)
        span = np.concatenate((of_student[0], of_teacher[0]))
        mine, theirs = np.concatenate((of_student[1], of_teacher[2])), np.concatenate((of_student[2], of_teacher[1]))
        # The observed pair takes the place of all that share a token with it.
        others = (mine != labels[last][span]) & (theirs != teacher_labels[last_teacher][span])
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


def _endings(spells: PrefixMap, labels: Ints, first: Ints, length: Ints) -> tuple[Ints, Ints, Ints]:
    """Tokens that are spelled as the observed ones of a span, but for the last one.

    Returns:
        Index of the span, the token that is spelled (of equal spellings the lowest id), and the last token that spells
        it.
    """
    trie = spells.trie
    node = np.where(length > 1, spells.node_of_token[labels[first]], -1)
    for depth in range(1, int(length.max(initial=0)) - 1):
        active = np.flatnonzero((node >= 0) & (length - 1 > depth))
        node[active] = trie.child(node[active], labels[first[active] + depth])
    known = np.flatnonzero(node >= 0)
    index, child = expand(trie.first_child[node[known]], trie.first_child[node[known] + 1])
    ends = trie.num_equal[child] > 0
    return known[index[ends]], spells.members[trie.start[child[ends]]], trie.symbol[child[ends]]
