"""Blocks of rows, and the places at which the rows of a batch may be cut into blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.batch.types import LossPlan, SpanBatch
from xtoken_pl.utilities.segments import even_segments, greedy_segments

# N/Q student/teacher rows, S spans, C cuts


@dataclass
class Block:
    """Consecutive student rows and, for each teacher, the spans that start in them and their teacher rows.

    The rows of blocks that follow one another are disjoint, but for those of a teacher whose plan reads the row before
    a span's: they begin with the row before the block's first span, which is in the block before, too.
    ``pieces`` are smaller blocks that together make up this one, without cutting a span.
    """

    student_rows: slice
    spans: dict[str, slice]
    teacher_rows: dict[str, slice]
    pieces: list[Block]

    @classmethod
    def empty(cls, teachers: Iterable[str]) -> Block:
        """Creates a block without rows, with one piece without rows."""
        nothing = slice(0, 0)
        pieces = [cls(nothing, dict.fromkeys(teachers, nothing), dict.fromkeys(teachers, nothing), [])]
        return replace(pieces[0], pieces=pieces)

    def rows(self, side: str) -> slice:
        """Rows of a teacher, given by name, or of the student, ``""``."""
        return self.teacher_rows[side] if side else self.student_rows

    def num_rows(self, side: str) -> int:
        """Number of :meth:`rows`."""
        rows = self.rows(side)
        return rows.stop - rows.start


@dataclass
class RowCuts:
    """Places at which the rows of a batch may be cut: not inside a span, nor where a row reads teacher rows beyond.

    These are numpy arrays, so that blocks are planned without synchronizing with the device.

    Attributes:
        student: ``[C]`` student rows before each cut, from 0 to N.
        spans: ``[C]`` spans before each cut, by teacher name.
        teacher: ``[C]`` teacher rows before each cut, by teacher name.
        read_before: Teachers whose plans read the teacher row before a span's.
    """

    student: NDArray[np.int64]
    spans: dict[str, NDArray[np.int64]]
    teacher: dict[str, NDArray[np.int64]]
    read_before: frozenset[str] = frozenset()

    @classmethod
    def from_spans(
        cls, num_rows: int, spans: Mapping[str, SpanBatch], plans: Mapping[str, LossPlan] | None = None
    ) -> RowCuts:
        """Finds the places at which ``num_rows`` student rows may be cut."""
        cuts_span = np.zeros(num_rows + 1, dtype=bool)
        for batch in spans.values():
            span = batch.student_span.numpy(force=True)
            cuts_span[1:-1] |= (span[1:] == span[:-1]) & (span[1:] < len(batch))
        cuts = np.flatnonzero(~cuts_span)
        before = {n: np.searchsorted(batch.student_first.numpy(force=True), cuts) for n, batch in spans.items()}
        ends = {n: (batch.teacher_first + batch.teacher_length).numpy(force=True) for n, batch in spans.items()}
        rows_before = {name: np.concatenate(([0], ends[name]))[before[name]] for name in spans}
        reads_on = np.zeros(len(cuts), dtype=bool)
        for name, plan in (plans or {}).items():
            reach = np.concatenate(([0], np.maximum.accumulate(plan.reach)))
            reads_on |= reach[cuts] > rows_before[name]

        def kept(counts: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
            return {name: count[~reads_on] for name, count in counts.items()}

        read_before = frozenset(name for name, plan in (plans or {}).items() if plan.reads_row_before)
        return cls(cuts[~reads_on], kept(before), kept(rows_before), read_before)

    def share(self, place: int, num_shares: int) -> RowCuts:
        """Divides the rows evenly, each span as a whole, and returns the cuts of one share.

        A share may have no row.

        Args:
            place: Number of the share, from 0.
            num_shares: Number of shares.
        """
        num_rows = self.student + sum(self.teacher.values())  # [C], all sides have products of the same kind
        aims = num_rows[0] + (num_rows[-1] - num_rows[0]) * np.arange(1, num_shares) / num_shares
        edges = [0, *np.searchsorted(num_rows, aims), len(num_rows) - 1]
        own = slice(edges[place], edges[place + 1] + 1)

        def kept(counts: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
            return {name: count[own] for name, count in counts.items()}

        return replace(self, student=self.student[own], spans=kept(self.spans), teacher=kept(self.teacher))

    @property
    def num_rows(self) -> int:
        """Number of rows between the first and the last cut, on the side that has most."""
        return max(int(count[-1] - count[0]) for count in (self.student, *self.teacher.values()))

    def blocks(self, max_rows: int, piece_rows: int) -> list[Block]:
        """Divides the batch into blocks of whole spans, each with at most ``max_rows`` rows of each side in spans.

        Blocks consist of whole pieces, each with at most ``piece_rows`` rows of each side. A span that exceeds a limit
        gets its own block or piece. The blocks are as few and as even as possible, since products with few rows are
        slow.
        """
        bounds = np.stack([self.student, *self.teacher.values()], axis=1)
        limits = [min(piece_rows, max_rows)] * bounds.shape[1]
        pieces = greedy_segments(bounds, limits)
        edges = np.array([0, *(end for _, end in pieces)])
        return [
            self._block(edges[first], edges[last], [self._block(*piece, []) for piece in pieces[first:last]])
            for first, last in even_segments(bounds[edges], max_rows)
        ]

    def _block(self, start: int, end: int, pieces: list[Block]) -> Block:
        return Block(
            student_rows=_between(self.student, start, end),
            spans={name: _between(before, start, end) for name, before in self.spans.items()},
            teacher_rows={name: self._teacher_rows(name, start, end) for name in self.teacher},
            pieces=pieces,
        )

    def _teacher_rows(self, name: str, start: int, end: int) -> slice:
        rows = _between(self.teacher[name], start, end)
        reads_before = name in self.read_before and 0 < rows.start < rows.stop
        return slice(rows.start - 1, rows.stop) if reads_before else rows


def _between(before: NDArray[np.int64], start: int, end: int) -> slice:
    return slice(int(before[start]), int(before[end]))
