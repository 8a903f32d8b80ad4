"""Strict one-to-one matching: only spans of one token on both sides, only tokens that both sides have."""

from __future__ import annotations

from dataclasses import replace

import torch

from xtoken_pl.losses.base import SpanBlock, SpanScores
from xtoken_pl.losses.common_tokens import CommonTokensLoss, renormalized_divergence
from xtoken_pl.losses.divergence import Divergence
from xtoken_pl.losses.row_content import RowContent
from xtoken_pl.utilities.checks import check_at_least_one


class StrictTopK(CommonTokensLoss):
    r"""Divergence over the common tokens of one-to-one spans; all other spans have loss zero.

    .. math:: D(Q, P), \quad P(s) = \frac{p(s)}{\sum_{s' \in K} p(s')}, \quad Q(t) = \frac{q(t)}{\sum_{t' \in K} q(t')}

    with p and q the student's and the teacher's distributions of the span's only token, and K the common pairs (s, t)
    of equal bytes or special role, or the ``student_top_k`` of them with the highest p(s). D is KL(P || Q) by default.
    The choice of K has no gradient. How much mass either side has outside K does not matter to the loss.

    A span of several tokens on either side gives neither loss nor gradient, but counts as a span in the mean. Rows of
    span starts are all that is read of the teacher. With the same tokenizer and all pairs the loss is
    :class:`TokenKL` with the same divergence; with one pair it is zero.

    **What we chose.** Special tokens of equal role are common. The k tokens are the most probable ones of the common
    tokens, not the common ones of the k most probable tokens. The mean is over all spans. In the reverse and the
    Jensen-Shannon form Q counts as 2e-31 at least (in single precision).

    Args:
        student_top_k: Number of common tokens compared, those that the student finds most probable; None for all.
        divergence: Divergence of the two sides; ``forward`` is KL(teacher || student).
        teacher_top_k: Tokens of these that are compared one by one, the teacher's most probable ones; all others become
            one bucket. None, the default, is exact.

    Raises:
        UserError: If ``student_top_k`` or ``teacher_top_k`` is not an integer >= 1; when bound, if no token is common.

    References:
        [0] https://arxiv.org/abs/2610.08448, 2026: "strict common" is ``student_top_k=None``, "strict top-k" has k.
    """

    def __init__(
        self,
        student_top_k: int | None = None,
        *,
        divergence: Divergence = "reverse",
        teacher_top_k: int | None = None,
    ) -> None:
        super().__init__(divergence=divergence, teacher_top_k=teacher_top_k)
        check_at_least_one("student_top_k", student_top_k, "None compares all common tokens")
        self.student_top_k = student_top_k

    @property
    def row_needs(self) -> RowContent:
        return replace(super().row_needs, rows="span_starts")

    def extra_repr(self) -> str:
        return f"student_top_k={self.student_top_k}, {super().extra_repr()}"

    def forward(self, block: SpanBlock) -> SpanScores:
        student_rows, teacher_rows = block.student.first_rows(), block.teacher.first_rows()
        student = student_rows.index_select(1, self.student_common)  # [S, C]
        teacher = teacher_rows.index_select(1, self.teacher_common)
        if self.student_top_k is not None and self.student_top_k < student.shape[1]:
            chosen = student.detach().topk(self.student_top_k, dim=-1, sorted=False).indices
            student, teacher = student.gather(1, chosen), teacher.gather(1, chosen)
        nats = renormalized_divergence(student, teacher, divergence=self.divergence, top_k=self.teacher_top_k)
        is_other = (block.student.length != 1) | (block.teacher.length != 1)
        unmapped_mass = (1 - student.detach().exp().sum(-1)).clamp(0, 1)
        return SpanScores(
            torch.where(is_other, 0.0, nats),
            torch.where(is_other, 1.0, unmapped_mass),
            self.agreement(student_rows, teacher_rows, self.counterpart),
        )
