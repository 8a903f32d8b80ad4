"""What a training step gets: token sequences, the rows that predict their tokens, and how spans relate them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.segments import even_segments, greedy_segments

if TYPE_CHECKING:
    from xtoken_pl.cache.rows import CachedRows

# The dataclasses of a batch are not frozen: Lightning's half precisions set their fields.

# B sequences, T padded length, N/Q student/teacher rows, S spans


class Movable:
    """A dataclass whose tensors, those of nested ones and of dicts included, move together."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """A copy on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy in page-locked memory, for a DataLoader with ``pin_memory``."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, Movable):
                return value._map(function)
            if isinstance(value, dict):
                return {key: apply(item) for key, item in value.items()}
            return value

        return replace(
            cast(Any, self), **{item.name: apply(getattr(self, item.name)) for item in fields(cast(Any, self))}
        )


@dataclass
class TokenBatch(Movable):
    """Padded sequences and the rows of interest.

    Row ``r`` is the position, in the flattened ``[B * T]`` sequences, whose hidden state predicts ``labels[r]``.

    Attributes:
        input_ids: ``[B, T]``.
        attention_mask: ``[B, T]``, 1 for tokens, 0 for padding (on the right).
        rows: ``[N]`` positions, increasing.
        labels: ``[N]`` the tokens that they predict.
        position_ids: ``[B, T]`` where packed documents do not see each other: the place of each token in its own
            document, padding being one, too. None where the model sees a sequence whole.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    labels: Tensor
    position_ids: Tensor | None = None


def sum_by_span(values: Tensor, span: Tensor, num_spans: int) -> Tensor:
    """``[N, ...] -> [S, ...]``: the sum over each span's rows; ``span`` is that of each row, S for a row of no span."""
    # One more place takes the rows of no span, and is cut off.
    return values.new_zeros(num_spans + 1, *values.shape[1:]).index_add(0, span, values)[:num_spans]


@dataclass
class SpanBatch(Movable):
    """How the rows of both sides relate, for one teacher. All spans of the batch, in the order of the rows.

    Attributes:
        student_first, teacher_first: ``[S]`` the first row of each span.
        student_length, teacher_length: ``[S]`` the number of its rows, which follow one another.
        student_span: ``[N]``, teacher_span: ``[Q]``, the span of each row, S for a row of no span.
    """

    student_first: Tensor
    student_length: Tensor
    teacher_first: Tensor
    teacher_length: Tensor
    student_span: Tensor
    teacher_span: Tensor

    def __len__(self) -> int:
        return self.student_first.shape[0]

    def sum_student_rows(self, values: Tensor) -> Tensor:
        """``[N] -> [S]``: the sum over the student rows of each span."""
        return sum_by_span(values, self.student_span, len(self))


@dataclass
class LossPlan(Movable, ABC):
    """What a loss finds out about a batch from its tokens alone; see :attr:`xtoken_pl.SpanLoss.planner`.

    Attributes:
        reach: ``[N]`` the end of the teacher rows that a student row reads (0 for none); kept on the host.
    """

    reach: NDArray[np.int64]

    @abstractmethod
    def cut(self, student_rows: slice, teacher_rows: slice) -> Self:
        """That of some rows, with indices counted from the first of them."""


@dataclass
class TeacherBatch(Movable):
    """One teacher's view of the batch.

    Attributes:
        tokens: Of the same text.
        spans: How its rows relate to the student's.
        plan: What its loss found out.
        cached: What is stored of the spans, for a teacher with a cache.
    """

    tokens: TokenBatch
    spans: SpanBatch
    plan: LossPlan | None = None
    cached: CachedRows | None = None


#: Makes the plan of one teacher's loss from the student's tokens and the teacher's view.
Planner = Callable[[TokenBatch, TeacherBatch], LossPlan]


@dataclass
class Block:
    """Consecutive student rows and, for each teacher, the spans that start in them and their teacher rows.

    ``pieces`` divides it further, without cutting a span.
    """

    student_rows: slice
    spans: dict[str, slice]
    teacher_rows: dict[str, slice]
    pieces: list[Block]

    @classmethod
    def empty(cls, teachers: Iterable[str]) -> Block:
        """A block without any row, with one such piece."""
        nothing = slice(0, 0)
        pieces = [cls(nothing, dict.fromkeys(teachers, nothing), dict.fromkeys(teachers, nothing), [])]
        return replace(pieces[0], pieces=pieces)

    def rows(self, side: str) -> slice:
        """Of a teacher, by name, or of the student, ``""``."""
        return self.teacher_rows[side] if side else self.student_rows

    def num_rows(self, side: str) -> int:
        """The number of :meth:`rows`."""
        rows = self.rows(side)
        return rows.stop - rows.start


@dataclass
class RowCuts:
    """Where the rows of a batch may be cut: no span is cut, and no row reads teacher rows behind the cut.

    Kept as numpy arrays beside the batch, so that blocks are planned without asking the device.

    Attributes:
        student: ``[C]`` student rows before each cut, from 0 to N.
        spans: By teacher, ``[C]`` spans before each cut.
        teacher: By teacher, ``[C]`` teacher rows before each cut.
    """

    student: NDArray[np.int64]
    spans: dict[str, NDArray[np.int64]]
    teacher: dict[str, NDArray[np.int64]]

    @classmethod
    def of(cls, num_rows: int, spans: Mapping[str, SpanBatch], plans: Mapping[str, LossPlan] | None = None) -> RowCuts:
        """Finds the cuts of ``num_rows`` student rows."""
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

        return cls(cuts[~reads_on], kept(before), kept(rows_before))

    def blocks(self, max_rows: int, piece_rows: int) -> list[Block]:
        """Blocks of whole spans, of at most ``max_rows`` rows of each side; a longer span gets its own block.

        They consist of whole pieces, of at most ``piece_rows`` rows of each side; a longer span gets its own piece. Of
        such blocks they are as few as possible, and as even, since products with few rows are slow.
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
            teacher_rows={name: _between(before, start, end) for name, before in self.teacher.items()},
            pieces=pieces,
        )


def _between(before: NDArray[np.int64], start: int, end: int) -> slice:
    return slice(int(before[start]), int(before[end]))


@dataclass
class DistillBatch(Movable):
    """The student's sequences, each teacher's, and how their rows may be cut into blocks.

    Attributes:
        student: The rows cover every token that the loss mask keeps and that has a predecessor.
        teachers: By teacher name.
        cuts: Of the rows.
    """

    student: TokenBatch
    teachers: dict[str, TeacherBatch]
    cuts: RowCuts

    def planned(self, planners: Mapping[str, Planner]) -> DistillBatch:
        """The batch with the plans of losses that make one, and cut only where all of them allow it.

        Args:
            planners: By teacher. Plans that are there already stay.
        """
        wanted = [name for name in planners if name in self.teachers and self.teachers[name].plan is None]
        if not wanted:
            return self
        plans = {name: planners[name](self.student, self.teachers[name]) for name in wanted}
        teachers = {name: replace(view, plan=plans.get(name, view.plan)) for name, view in self.teachers.items()}
        known = {name: view.plan for name, view in teachers.items() if view.plan is not None}
        cuts = RowCuts.of(len(self.student.labels), {name: view.spans for name, view in teachers.items()}, known)
        # Plans are made on the host.
        return replace(self, teachers=teachers, cuts=cuts).to(self.student.labels.device)
