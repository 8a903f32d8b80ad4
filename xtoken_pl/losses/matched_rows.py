"""Base of the losses that compare one student row with one teacher row per span."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from xtoken_pl.losses.base import SpanBlock, SpanScores
from xtoken_pl.losses.divergence import Divergence
from xtoken_pl.losses.row_content import RowContent
from xtoken_pl.losses.teacher_tokens import TopKLoss
from xtoken_pl.utilities.checks import check_choice

# S spans, V_s/V_t vocabulary sizes (student/teacher)

Merge = Literal["chain_rule", "mean"]


class MatchedRowLoss(TopKLoss):
    """A loss that compares one student row with one teacher row per span.

    Args:
        merge: How a span of several tokens becomes one row. ``chain_rule``: the first token's distribution and the
            probability c of the observed continuation, so that the row's entry for the observed token is the
            probability of the whole span's text. ``mean``: the rows are averaged, as in other implementations.
        teacher_top_k: Number of tokens that a term compares one by one, the teacher's most probable ones in each row;
            all others become one bucket, and nothing is renormalized. None, the default, is exact.

    Raises:
        UserError: If ``teacher_top_k`` is not an integer >= 1.
    """

    def __init__(self, *, merge: Merge = "chain_rule", teacher_top_k: int | None = None) -> None:
        super().__init__(teacher_top_k=teacher_top_k)
        self.merge: Merge = check_choice("merge", merge, Merge)

    def extra_repr(self) -> str:
        kept = "" if self.teacher_top_k is None else f", teacher_top_k={self.teacher_top_k}"
        return f"merge={self.merge}{kept}"

    @property
    def row_needs(self) -> RowContent:
        """The rows of span starts, unless the loss has a plan or averages all rows."""
        reads_all = self.merge == "mean" or self.planner is not None
        return replace(super().row_needs, rows="all" if reads_all else "span_starts")

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
        student, teacher = (side.mean_rows(side.log_probs).log_softmax(-1) for side in (block.student, block.teacher))
        no_continuation = teacher.new_zeros(len(teacher))
        return self.score_rows(student, teacher, no_continuation, no_continuation)


class DivergenceLoss(MatchedRowLoss):
    """A loss of matched rows that compares tokens by a divergence.

    Args:
        merge: How a span of several tokens becomes one row.
        divergence: Divergence of the two sides; ``forward`` is KL(teacher || student).
        teacher_top_k: Teacher tokens kept in each row; see :class:`MatchedRowLoss`.
    """

    def __init__(
        self, *, merge: Merge = "chain_rule", divergence: Divergence = "forward", teacher_top_k: int | None = None
    ) -> None:
        super().__init__(merge=merge, teacher_top_k=teacher_top_k)
        self.divergence: Divergence = check_choice("divergence", divergence, Divergence)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the divergence: its form, and the number of teacher tokens compared one by one."""
        return {"divergence": self.divergence, "top_k": self.teacher_top_k}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, divergence={self.divergence}"
