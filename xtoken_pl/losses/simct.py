"""SimCT: shared tokens and short texts that both sides can write, under one distribution."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from xtoken_pl.batch import Planner
from xtoken_pl.losses.base import SideRows, SpanBlock, SpanScores
from xtoken_pl.losses.common_tokens import CommonTokensLoss, renormalized_divergence
from xtoken_pl.losses.divergence import Divergence
from xtoken_pl.losses.joint_units import UnitPlan, UnitPlanner
from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_choice

# S spans, U units, C common pairs

#: ``observed``: the text of the span. ``path``: also texts that leave the observed tokens at their last token.
Units = Literal["path", "observed"]


class SimCT(CommonTokensLoss):
    r"""Divergence over candidates that both sides can write: common tokens, and units of several tokens.

    .. math:: D(Q, P), \quad P = \mathrm{softmax}_u\, \frac{1}{|u|_S} \sum_{i \le |u|_S} \log p_i(u_i), \quad
              Q = \mathrm{softmax}_u\, \frac{1}{|u|_T} \sum_{j \le |u|_T} \log q_j(u_j)

    per span, over the candidates u, which the student writes in :math:`|u|_S` tokens and the teacher in
    :math:`|u|_T`. D is KL(P || Q) by default. The candidates are

    - the common pairs of equal bytes or special role, scored at the span's first token; they are all that there is in a
      one-to-one span;
    - in every other span its own text;
    - with ``units="path"`` also every text that one side writes as a single token, which is not common, and the other
      side as at least one of the span's first tokens and one more token of any kind. With student tokens ``Br ead``
      for the teacher's ``Bread``, the teacher's ``Breads`` and ``Break`` are such units if the student writes them
      ``Br eads`` and ``Br eak``. The other side's spelling is the one that its tokenizer gives.

    Means of different lengths make no distribution over texts: where the student's probability of every token of every
    candidate is half as large, the loss is the same.

    With the same tokenizer the loss is :class:`TokenKL` with the same divergence; on one-to-one spans it is
    ``StrictTopK()``.

    **What we chose.** Texts that leave the observed tokens earlier have no rows in one pass of each model, and are no
    candidates. ``units="observed"`` is what the authors' program does, except that it takes means of logits, which we
    normalize first. Their paper describes more candidates than the observed text; ``units="path"`` (the default) has
    those that one pass can score, but for texts other than the observed one that both sides write in several tokens.
    Where only one side has a space before the text, a span has no unit but itself. In the reverse and the
    Jensen-Shannon form Q counts as 2e-31 at least (in single precision).

    Args:
        units: Candidates beyond the common tokens.
        divergence: Divergence of the two sides; ``forward`` is KL(teacher || student).
        teacher_top_k: Candidates that are compared one by one, the teacher's most probable ones; all others become one
            bucket. None, the default, is exact.

    Raises:
        UserError: If ``teacher_top_k`` is not an integer >= 1; when bound, if no token is common.

    References:
        [0] SimCT, 2026, https://arxiv.org/abs/2605.07711; program: https://github.com/sunjie279/SimCT-
    """

    def __init__(
        self, *, units: Units = "path", divergence: Divergence = "reverse", teacher_top_k: int | None = None
    ) -> None:
        super().__init__(divergence=divergence, teacher_top_k=teacher_top_k)
        self.units: Units = check_choice("units", units, Units)
        self._planner: UnitPlanner | None = None

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        """Finds the common pairs, and how each side writes the other's tokens.

        Raises:
            UserError: If no token is common.
        """
        super().bind(student, teacher, projection)
        self._planner = UnitPlanner(student, teacher, along_path=self.units == "path")

    @property
    def planner(self) -> Planner:
        assert self._planner is not None, "bind comes first"
        return self._planner.plan

    def extra_repr(self) -> str:
        return f"units={self.units}, {super().extra_repr()}"

    def forward(self, block: SpanBlock) -> SpanScores:
        plan, sides = block.plan, (block.student, block.teacher)
        assert isinstance(plan, UnitPlan), "plan comes first"
        rows = [side.first_rows() for side in sides]
        student, teacher = (
            row.index_select(1, common)
            for row, common in zip(rows, (self.student_common, self.teacher_common), strict=True)
        )
        unmapped_mass = (1 - student.detach().exp().sum(-1)).clamp(0, 1)
        if plan.most_units:
            table = plan.units
            place = block.student.span[table.row], table.place
            units = (table.student_token, table.student_length), (table.teacher_token, table.teacher_length)
            student, teacher = (
                _with_units(scores, _mean_log_probs(side, place[0], *unit, plan.most_tokens), place, plan.most_units)
                for scores, side, unit in zip((student, teacher), sides, units, strict=True)
            )
        nats = renormalized_divergence(student, teacher, divergence=self.divergence, top_k=self.teacher_top_k)
        return SpanScores(nats, unmapped_mass, self.agreement(rows[0], rows[1], self.counterpart))


def _with_units(scores: Tensor, of_units: Tensor, place: tuple[Tensor, Tensor], num_units: int) -> Tensor:
    """``[S, C], [U] -> [S, C + num_units]``: the units in columns of their own, -inf where a span has fewer."""
    empty = scores.new_full((len(scores), num_units), -torch.inf)
    return torch.cat((scores, empty.index_put(place, of_units)), dim=1)


def _mean_log_probs(side: SideRows, span: Tensor, token: Tensor, length: Tensor, most_tokens: int) -> Tensor:
    """``[U]``: the mean log-probability of the first ``length - 1`` tokens of each unit's span, and of ``token``."""
    rows = side.first[:, None] + torch.arange(most_tokens - 1, device=side.first.device)  # [S, most_tokens - 1]
    is_own = rows < (side.first + side.length)[:, None]
    observed = side.token_log_probs()[rows.clamp(max=max(len(side.labels) - 1, 0))].masked_fill(~is_own, 0.0)
    before = F.pad(observed.cumsum(-1), (1, 0))  # [S, most_tokens], sums over the tokens before each
    last = side.log_probs[side.first[span] + length - 1, token]
    return (before[span, length - 1] + last) / length
