"""What a training step gets: token sequences, the rows that predict their tokens, and how spans relate them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch.cached_rows import CachedRows
from xtoken_pl.batch.movable import Movable

# The dataclasses of a batch are not frozen: Lightning's half precisions set their fields.

# B sequences, T padded length, N/Q student/teacher rows, S spans


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
