"""Parts of a batch: token sequences, the rows that predict their tokens, and the spans that relate these rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch.known_rows import KnownRows
from xtoken_pl.batch.movable import Movable

# The dataclasses of a batch are not frozen: Lightning's half precisions set their fields.

# B sequences, T padded length, N/Q student/teacher rows, S spans

#: Kind of a span, by its number of student tokens to its number of teacher tokens; ``many`` is two or more.
SpanKind = Literal["one_to_one", "one_to_many", "many_to_one", "many_to_many"]
#: All kinds, in the order of the indices of :attr:`SpanBatch.kind`.
SPAN_KINDS: tuple[SpanKind, ...] = get_args(SpanKind)


@dataclass
class TokenBatch(Movable):
    """Padded sequences and the rows that take part in the losses.

    Row ``r`` is the position, in the flattened ``[B * T]`` sequences, whose hidden state predicts ``labels[r]``.

    Attributes:
        input_ids: ``[B, T]`` token ids.
        attention_mask: ``[B, T]``, 1 for tokens, 0 for padding (on the right).
        rows: ``[N]`` positions, increasing.
        labels: ``[N]`` tokens that they predict.
        position_ids: ``[B, T]`` position of each token in its own document (padding counts as a document), if packed
            documents do not attend to each other; otherwise None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    labels: Tensor
    position_ids: Tensor | None = None


def sum_by_span(values: Tensor, span: Tensor, num_spans: int) -> Tensor:
    """Sums over the rows of each span, ``[N, ...] -> [S, ...]``; ``span`` ``[N]`` is S for a row in no span."""
    # Rows in no span are added to an extra entry, which is dropped.
    return values.new_zeros(num_spans + 1, *values.shape[1:]).index_add(0, span, values)[:num_spans]


@dataclass
class SpanBatch(Movable):
    """All spans between the student's rows and one teacher's rows, in the order of the rows.

    Attributes:
        student_first, teacher_first: ``[S]`` first row of each span.
        student_length, teacher_length: ``[S]`` number of consecutive rows of each span.
        student_span: ``[N]``, teacher_span: ``[Q]``, span of each row, S for a row in no span.
    """

    student_first: Tensor
    student_length: Tensor
    teacher_first: Tensor
    teacher_length: Tensor
    student_span: Tensor
    teacher_span: Tensor

    def __len__(self) -> int:
        return self.student_first.shape[0]

    @property
    def kind(self) -> Tensor:
        """``[S]`` kind of each span, as an index of :data:`SPAN_KINDS`."""
        return 2 * (self.student_length > 1).long() + (self.teacher_length > 1).long()

    def count_kinds(self) -> Tensor:
        """``[4]`` number of spans of each kind; does not wait for the device."""
        kind = self.kind
        return kind.new_zeros(len(SPAN_KINDS)).index_add(0, kind, torch.ones_like(kind))

    def sum_student_rows(self, values: Tensor) -> Tensor:
        """Sums over the student rows of each span, ``[N] -> [S]``."""
        return sum_by_span(values, self.student_span, len(self))


@dataclass
class LossPlan(Movable, ABC):
    """Tables that a loss computes from a batch's tokens alone; see :attr:`xtoken_pl.SpanLoss.planner`.

    Attributes:
        reach: ``[N]`` end of the teacher rows that each student row reads (0 for none); stays on the CPU.
    """

    #: Whether rows also read the teacher row before those of their span.
    reads_row_before: ClassVar[bool] = False

    reach: NDArray[np.int64]

    @abstractmethod
    def cut(self, student_rows: slice, teacher_rows: slice) -> Self:
        """Returns the plan of the given rows, with indices counted from the first of them."""


@dataclass
class TeacherBatch(Movable):
    """One teacher's view of the batch.

    Attributes:
        tokens: The teacher's tokens of the same text.
        spans: Spans that relate its rows to the student's.
        plan: Plan of its loss, if the loss makes one.
        known: Rows that a cache or a server gives; None for a teacher that runs here.
    """

    tokens: TokenBatch
    spans: SpanBatch
    plan: LossPlan | None = None
    known: KnownRows | None = None


#: Function that makes the plan of one teacher's loss from the student's tokens and the teacher's view.
Planner = Callable[[TokenBatch, TeacherBatch], LossPlan]
