"""Finds the positions of a batch at which a teacher's row is summed over prefixes, before the forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from xtoken_pl.batch import LossPlan, TeacherBatch, TokenBatch
from xtoken_pl.prefix_map.planner import PrefixPlanner
from xtoken_pl.prefix_map.prefix_map import PrefixMap
from xtoken_pl.prefix_map.row_tables import Column, RowTables, entries_before
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.ranges import Bools, Ints, expand

# N student rows, R positions, K paths, B branches, X steps


@dataclass
class MarginalPositions(RowTables):
    """Student rows of one kind, the teacher's row of each, and the paths that observed student tokens take.

    An observed student token has a *path* if it consists of several observed teacher tokens: what is left of the one
    that it begins in, and at least one more, to the very end of its last one.

    Attributes:
        before: Also counts ``extending``, teacher tokens from ``low`` to ``high``.
        row: ``[R]`` student rows, increasing.
        teacher: ``[R]`` row of the teacher token that the position lies in, or begins with.
        consumed: ``[R]`` bytes of the teacher token before the position.
        low, high: ``[R]`` range, in the map's order, of the teacher tokens that begin with these bytes, if inside.
        path_position: ``[K]`` position of each path.
        path_token: ``[K]`` observed student token.
        branch_path: ``[B]`` paths whose student token is in no column of its own.
        step_path: ``[X]`` path of each teacher token after the path's first one.
        step_teacher: ``[X]`` row that predicts it.
    """

    row: Annotated[Tensor, Column("positions", "student")]
    teacher: Annotated[Tensor, Column("positions", "teacher")]
    consumed: Annotated[Tensor, Column("positions")]
    low: Annotated[Tensor, Column("positions")]
    high: Annotated[Tensor, Column("positions")]
    path_position: Annotated[Tensor, Column("paths", "positions")]
    path_token: Annotated[Tensor, Column("paths")]
    branch_path: Annotated[Tensor, Column("branches", "paths")]
    step_path: Annotated[Tensor, Column("steps", "paths")]
    step_teacher: Annotated[Tensor, Column("steps", "teacher")]


@dataclass
class MarginalPlan(LossPlan):
    """All positions of a batch.

    Attributes:
        boundary: Positions at which both sides begin a token.
        inside: Positions inside a teacher token.
    """

    boundary: MarginalPositions
    inside: MarginalPositions

    def cut(self, student_rows: slice, teacher_rows: slice) -> MarginalPlan:
        """Returns the plan of the given rows."""
        boundary, inside = (part.cut(student_rows, teacher_rows) for part in (self.boundary, self.inside))
        return MarginalPlan(np.maximum(self.reach[student_rows] - teacher_rows.start, 0), boundary, inside)


class MarginalPlanner:
    """Planner of byte-prefix marginalization for a pair of tokenizers.

    Args:
        prefix_map: Prefix map of the pair.
        student, teacher: Vocabularies of the pair.
        has_column: ``[V_s]`` bool, True for the student tokens that have a column of their own at a boundary.
    """

    def __init__(
        self, prefix_map: PrefixMap, student: CanonicalVocabulary, teacher: CanonicalVocabulary, has_column: Bools
    ) -> None:
        self.prefixes = PrefixPlanner(prefix_map, student, teacher)
        self.has_column = has_column

    def plan(self, student: TokenBatch, teacher: TeacherBatch) -> MarginalPlan:
        """Makes the plan of a batch."""
        reach, boundary, inside = self.positions(student, teacher)
        return MarginalPlan(reach, boundary, inside)

    def positions(
        self, student: TokenBatch, teacher: TeacherBatch
    ) -> tuple[Ints, MarginalPositions, MarginalPositions]:
        """Finds the end of the teacher rows that each student row reads, and the positions of both kinds."""
        labels, teacher_labels = student.labels.numpy(force=True), teacher.tokens.labels.numpy(force=True)
        row, first, consumed = self.prefixes.locate(labels, teacher_labels, teacher.spans)
        # Counted in teacher tokens: one for a token that ends within its first, or inside a later one.
        end = np.append(0, np.cumsum(self.prefixes.teacher_symbols[teacher_labels]))
        stop = end[first] + consumed + self.prefixes.student_symbols[labels[row]]
        last = np.searchsorted(end, stop)
        num_tokens = np.where(end[np.minimum(last, len(end) - 1)] == stop, last - first, 1)
        reach = np.zeros(len(labels), dtype=np.int64)
        reach[row] = first + np.maximum(num_tokens, 1)
        kinds = [
            self._positions(labels, teacher_labels, row[kind], first[kind], consumed[kind], num_tokens[kind])
            for kind in (consumed == 0, consumed > 0)
        ]
        return reach, kinds[0], kinds[1]

    def _positions(
        self, labels: Ints, teacher_labels: Ints, row: Ints, first: Ints, consumed: Ints, num_tokens: Ints
    ) -> MarginalPositions:
        prefix_map = self.prefixes.map
        token = teacher_labels[first]
        byte = np.minimum(prefix_map.offsets[token] + consumed, len(prefix_map.longest) - 1)
        extending = np.where((consumed > 0)[:, None], prefix_map.extending[byte], 0)
        path = np.flatnonzero(num_tokens > 1)
        step_path, step_teacher = expand(first[path] + 1, first[path] + num_tokens[path])
        branch = np.flatnonzero(~self.has_column[labels[row[path]]] & (consumed[path] == 0))
        owner = {"positions": row, "paths": row[path], "branches": row[path[branch]], "steps": row[path[step_path]]}
        before = entries_before(owner, len(labels))
        low, high = np.ascontiguousarray(extending.T)
        before["extending"] = np.append(0, np.cumsum(high - low))[before["positions"]]
        columns = {
            "row": row,
            "teacher": first,
            "consumed": consumed,
            "low": low,
            "high": high,
            "path_position": path,
            "path_token": labels[row[path]],
            "branch_path": branch,
            "step_path": step_path,
            "step_teacher": step_teacher,
        }
        return MarginalPositions(before, **{name: torch.from_numpy(column) for name, column in columns.items()})
