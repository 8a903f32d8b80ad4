"""The interface of every loss: a block of rows and how they relate, in; a number per span, out.

A loss knows nothing of batches, models, padding or temperature. Most losses reduce to a pure function of matched
rows (:class:`MatchedRowLoss`); one that needs several teacher rows for a student row reads the block itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from xtoken_pl.batch import LossPlan, Planner, sum_by_span
from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_choice
from xtoken_pl.utilities.errors import UserError

# P student rows, Q teacher rows, S spans, V_s/V_t vocabulary sizes (student/teacher)

Merge = Literal["chain_rule", "mean"]


@dataclass(frozen=True)
class SideRows:
    """One side's rows of a block. Row ``i`` is the distribution that predicts token ``labels[i]``.

    Attributes:
        log_probs: ``[N, V]`` log-probabilities, -inf for ids that do not exist.
        labels: ``[N]`` the observed tokens.
        first: ``[S]`` each span's first row.
        length: ``[S]`` the number of rows of each span; they follow one another.
        span: ``[N]`` the span of each row, S for a row of no span.
        known_log_continuation: ``[S]`` log c, where only the first rows are here.
    """

    log_probs: Tensor
    labels: Tensor
    first: Tensor
    length: Tensor
    span: Tensor
    known_log_continuation: Tensor | None = None

    @property
    def only_first_rows(self) -> bool:
        """Whether every row is a span of its own; then there is nothing to select and nothing to add."""
        return len(self.first) == len(self.labels)

    def first_rows(self) -> Tensor:
        """``[S, V]``: the distribution at the start of each span."""
        if self.only_first_rows:
            return self.log_probs
        return self.log_probs.index_select(0, self.first)

    def log_continuation(self) -> Tensor:
        r"""``[S]``: :math:`\log c = \sum_{k>i} \log p(x_k | x_{<k})` over a span's tokens after the first."""
        if self.known_log_continuation is not None:
            return self.known_log_continuation
        if self.only_first_rows:
            return self.log_probs.new_zeros(len(self.first))
        token_log_probs = self.token_log_probs()
        is_first = torch.zeros_like(self.labels, dtype=torch.bool).index_fill(0, self.first, value=True)
        return self.sum_by_span(token_log_probs.masked_fill(is_first, 0.0))

    def token_log_probs(self) -> Tensor:
        """``[N]``: the log-probability of each observed token."""
        return self.log_probs.gather(1, self.labels[:, None]).squeeze(1)

    def mean_rows(self, rows: Tensor) -> Tensor:
        """``[N, V] -> [S, V]``: the average over each span's rows."""
        return self.sum_by_span(rows) / self.length[:, None]

    def sum_by_span(self, values: Tensor) -> Tensor:
        """``[N, ...] -> [S, ...]``: the sum over each span's rows."""
        return sum_by_span(values, self.span, self.first.shape[0])


@dataclass(frozen=True)
class SpanBlock:
    """All rows of some consecutive spans, of both sides.

    Attributes:
        student, teacher: The rows.
        plan: Of these rows, where the loss makes one; it reads no others.
    """

    student: SideRows
    teacher: SideRows
    plan: LossPlan | None = None


class SpanScores(NamedTuple):
    """What a loss says of each span.

    Attributes:
        loss: ``[S]`` nats.
        unmapped_mass: ``[S]`` the student's probability that the loss compares with no token of the teacher (no place
            in W, outside C), in [0, 1], detached.
        agreement: ``[S]`` 1 where both sides' most probable token is the same, detached; None during training.
    """

    loss: Tensor
    unmapped_mass: Tensor
    agreement: Tensor | None


class SpanLoss(nn.Module, ABC):
    """Base of all losses. Subclass it, or :class:`MatchedRowLoss`, anywhere importable to add one.

    A loss is configured without data (``__init__``) and then bound once to a pair of vocabularies (:meth:`bind`).
    """

    #: Whether :meth:`bind` needs W.
    needs_projection: ClassVar[bool] = False
    #: Whether a gradient reaches the weights of W, so that they can be learned.
    can_learn_projection: ClassVar[bool] = False

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        """Takes what the loss needs of the two vocabularies. Called once, before training."""

    @property
    def can_be_negative(self) -> bool:
        """Whether the loss of a span may be below zero, beyond rounding."""
        return False

    def learn_projection(self) -> None:
        """Makes the weights of W parameters; called after :meth:`bind`, where ``can_learn_projection`` is True."""
        raise NotImplementedError(f"{type(self).__name__} does not learn a projection")

    @property
    def planner(self) -> Planner | None:
        """What finds out about a batch from its tokens alone, before there are logits; None where there is nothing.

        It is called where batches are made, in the processes of the data loader, so that it must be picklable and
        should hold no tensor of the loss. Its plan may read teacher rows behind a span: blocks are then cut where no
        row reads behind the cut.
        """
        return None

    @abstractmethod
    def forward(self, block: SpanBlock) -> SpanScores:
        """Scores every span of a block.

        The score of a span must depend on that span's rows alone: its weight is known, and applied, only later.
        """

    @torch.no_grad()
    def agreement(self, student: Tensor, teacher: Tensor, teacher_token: Tensor | None = None) -> Tensor | None:
        """``[S, V_s], [S, V_t] -> [S]``: 1 where both sides prefer the same token, else 0; None during training.

        Args:
            teacher_token: ``[V_s]`` the teacher's token of each column of ``student``, -1 for none; None where both
                sides have the same columns.
        """
        if self.training:
            return None
        preferred = student.argmax(-1)
        return ((preferred if teacher_token is None else teacher_token[preferred]) == teacher.argmax(-1)).float()


class MatchedRowLoss(SpanLoss):
    """A loss that compares one student row with one teacher row per span.

    Args:
        merge: How a span of several tokens becomes one row. ``chain_rule``: the first token's distribution and the
            probability c of the observed continuation, so that the row's entry for the observed token is the
            probability of the whole span's text. ``mean``: what other implementations do, the rows averaged.
        teacher_top_k: Of the tokens that a term compares, the teacher's k most probable ones are kept in each row, and
            all others become one bucket; nothing is renormalized. None, the default, is exact.

    Raises:
        UserError: If ``teacher_top_k`` is below 1.
    """

    def __init__(self, *, merge: Merge = "chain_rule", teacher_top_k: int | None = None) -> None:
        super().__init__()
        self.merge: Merge = check_choice("merge", merge, Merge)
        if teacher_top_k is not None and teacher_top_k < 1:
            raise UserError(f"teacher_top_k must be >= 1, got {teacher_top_k}; None keeps the whole distribution")
        self.teacher_top_k = teacher_top_k

    def extra_repr(self) -> str:
        kept = "" if self.teacher_top_k is None else f", teacher_top_k={self.teacher_top_k}"
        return f"merge={self.merge}{kept}"

    def forward(self, block: SpanBlock) -> SpanScores:
        if self.merge == "mean":
            return self.score_mean(block)
        return self.score_rows(
            block.student.first_rows(),
            block.teacher.first_rows(),
            block.student.log_continuation(),
            block.teacher.log_continuation(),
        )

    @abstractmethod
    def score_rows(
        self, student_log_probs: Tensor, teacher_log_probs: Tensor, student_log_c: Tensor, teacher_log_c: Tensor
    ) -> SpanScores:
        """Scores matched rows: ``[S, V_s], [S, V_t], [S], [S] -> [S]``."""

    def score_mean(self, block: SpanBlock) -> SpanScores:
        """Scores the log-probabilities averaged over each span, renormalized over the whole vocabularies."""
        student = block.student.mean_rows(block.student.log_probs).log_softmax(-1)
        teacher = block.teacher.mean_rows(block.teacher.log_probs).log_softmax(-1)
        no_continuation = teacher.new_zeros(len(teacher))
        return self.score_rows(student, teacher, no_continuation, no_continuation)
