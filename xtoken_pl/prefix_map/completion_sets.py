"""Teacher tokens that an observed student token may grow into, and the student tokens that may come next then."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from xtoken_pl.batch import LossPlan, TeacherBatch, TokenBatch
from xtoken_pl.prefix_map.byte_classes import byte_classes
from xtoken_pl.prefix_map.marginal_positions import MarginalPlanner, MarginalPositions
from xtoken_pl.prefix_map.prefix_map import PrefixMap
from xtoken_pl.prefix_map.row_tables import Column, RowTables, entries_before
from xtoken_pl.prefix_map.trie import ByteTrie
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.ranges import Bools, Ints

# N student rows, Z completions, G groups, E entries, V_s vocabulary size (student)


@dataclass(frozen=True)
class CompletionSets:
    """Groups of the teacher tokens whose bytes are no student token, and what completes them.

    The *stem* of a group is the shortest bytes of its tokens; all of them begin with it. An *entry* is a group whose
    stem begins with a student token and is longer, together with the student tokens that begin with the rest of it.

    Attributes:
        sources: Teacher tokens of all groups, one group after the other.
        source_start: ``[G + 1]`` first source of each group.
        group: ``[E]`` group of each entry.
        targets: Student tokens that have bytes, sorted by them.
        target_start, target_end: ``[E]`` range of each entry's student tokens.
        low, high: ``[V_s]`` range of the entries that begin with a student token.
    """

    sources: Ints
    source_start: Ints
    group: Ints
    targets: Ints
    target_start: Ints
    target_end: Ints
    low: Ints
    high: Ints

    @classmethod
    def build(cls, prefix_map: PrefixMap, student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> CompletionSets:
        """Finds the sets of two vocabularies."""
        classes = byte_classes(student)
        known = dict(zip(student.token_bytes, classes.tolist(), strict=True))
        known.pop(b"", None)
        sources = [v for v in prefix_map.order.tolist() if teacher.token_bytes[v] not in known]
        stems: list[int] = []  # a token of each group that has the shortest bytes
        starts: list[int] = []
        for place, v in enumerate(sources):
            if not stems or not teacher.token_bytes[v].startswith(teacher.token_bytes[stems[-1]]):
                stems.append(v)
                starts.append(place)
        by_student = ByteTrie.from_vocabulary(student)
        # Cut every stem behind every byte but the last.
        stem = np.array(stems, dtype=np.int64)
        lengths = teacher.num_bytes[stem] - 1
        group = np.repeat(np.arange(len(stem)), lengths)
        behind = np.arange(len(group)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
        first = teacher.offsets[stem[group]]
        node, _ = by_student.walk(teacher.flat_bytes, first + behind, teacher.offsets[stem[group] + 1])
        entry = np.flatnonzero(node > 0)
        group, behind, node = group[entry], behind[entry], node[entry]
        texts = (teacher.token_bytes[stems[g]][:length] for g, length in zip(group, behind, strict=True))
        begun = np.array([known.get(text, -1) for text in texts], dtype=np.int64)
        entry = np.argsort(begun, kind="stable")
        entry = entry[begun[entry] >= 0]
        low, high = (np.searchsorted(begun[entry], classes, side=side) for side in ("left", "right"))
        return cls(
            sources=np.array(sources, dtype=np.int64),
            source_start=np.array([*starts, len(sources)], dtype=np.int64),
            group=group[entry],
            targets=by_student.tokens,
            target_start=by_student.trie.start[node[entry]],
            target_end=by_student.trie.end[node[entry]],
            low=low,
            high=high,
        )

    @cached_property
    def sources_before(self) -> Ints:
        """``[E + 1]`` sources of all entries before each."""
        return np.append(0, np.cumsum(np.diff(self.source_start)[self.group]))

    @cached_property
    def targets_before(self) -> Ints:
        """``[E + 1]`` targets of all entries before each."""
        return np.append(0, np.cumsum(self.target_end - self.target_start))


@dataclass
class Completions(RowTables):
    """Student rows at a boundary whose next row is to complete what the teacher may have meant.

    Attributes:
        before: Also counts ``entries`` from ``low`` to ``high``, and their ``sources`` and ``targets``.
        row: ``[Z]`` student rows; the one behind each is the next row.
        teacher: ``[Z]`` row of the teacher at the same place.
        low, high: ``[Z]`` range of the entries that begin with the observed student token.
    """

    row: Annotated[Tensor, Column("completions", "student")]
    teacher: Annotated[Tensor, Column("completions", "teacher")]
    low: Annotated[Tensor, Column("completions")]
    high: Annotated[Tensor, Column("completions")]


@dataclass
class CompletionPlan(LossPlan):
    """Positions at a boundary of a batch, and their completions."""

    boundary: MarginalPositions
    completions: Completions

    def cut(self, student_rows: slice, teacher_rows: slice) -> CompletionPlan:
        """Returns the plan of the given rows."""
        parts = self.boundary.cut(student_rows, teacher_rows), self.completions.cut(student_rows, teacher_rows)
        return CompletionPlan(np.maximum(self.reach[student_rows] - teacher_rows.start, 0), *parts)


class CompletionPlanner(MarginalPlanner):
    """Planner of boundaries and completions for a pair of tokenizers.

    Args:
        sets: Completion sets of the pair.
        prefix_map: Prefix map of the pair.
        student, teacher: Vocabularies of the pair.
        has_column: ``[V_s]`` bool, True for the student tokens that have a column of their own at a boundary.
    """

    def __init__(
        self,
        sets: CompletionSets,
        prefix_map: PrefixMap,
        student: CanonicalVocabulary,
        teacher: CanonicalVocabulary,
        has_column: Bools,
    ) -> None:
        super().__init__(prefix_map, student, teacher, has_column)
        self.sets = sets

    def plan(self, student: TokenBatch, teacher: TeacherBatch) -> CompletionPlan:  # type: ignore[override]
        """Makes the plan of a batch."""
        reach, boundary, _ = self.positions(student, teacher)
        spans = teacher.spans
        span, places = spans.student_span.numpy(force=True), student.rows.numpy(force=True)
        has_next = np.zeros(len(span), dtype=bool)
        has_next[:-1] = (span[1:] < len(spans)) & (places[1:] == places[:-1] + 1)
        row, teacher_row = boundary.row.numpy(), boundary.teacher.numpy()
        labels = student.labels.numpy(force=True)[row]
        wanted = np.flatnonzero(has_next[row] & (self.sets.high[labels] > self.sets.low[labels]))
        row, teacher_row, labels = row[wanted], teacher_row[wanted], labels[wanted]
        # Two spans with a completion between them stay in one block.
        first = np.append(spans.teacher_first.numpy(force=True), 0)
        reach[row] = np.maximum(reach[row], first[span[row + 1]] + 1)
        return CompletionPlan(reach, boundary, self._completions(row, teacher_row, labels, len(span)))

    def _completions(self, row: Ints, teacher_row: Ints, labels: Ints, num_rows: int) -> Completions:
        low, high = self.sets.low[labels], self.sets.high[labels]
        before = entries_before({"completions": row}, num_rows)
        counts = {
            "entries": high - low,
            "sources": self.sets.sources_before[high] - self.sets.sources_before[low],
            "targets": self.sets.targets_before[high] - self.sets.targets_before[low],
        }
        before |= {table: np.append(0, np.cumsum(count))[before["completions"]] for table, count in counts.items()}
        columns = {"row": row, "teacher": teacher_row, "low": low, "high": high}
        return Completions(before, **{name: torch.from_numpy(column) for name, column in columns.items()})
