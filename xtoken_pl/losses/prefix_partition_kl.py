"""Partition KL over prefixes: probabilities of whole spans that differ in their last token, and all the rest as one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xtoken_pl.batch import Planner
from xtoken_pl.losses.base import SideRows, SpanBlock, SpanScores
from xtoken_pl.losses.common_tokens import CommonTokensLoss
from xtoken_pl.losses.divergence import Divergence, finite, generalized_divergence, log_clamped
from xtoken_pl.losses.prefix_mass import LEAST_NATS
from xtoken_pl.prefix_map import PartitionPlan, PartitionPlanner, SpanCells
from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_not_negative

# S spans, K compared spans, C common pairs, U spans that are not one-to-one, E cells


class PrefixPartitionKL(CommonTokensLoss):
    r"""Partition KL over prefixes: whole spans that differ in their last token, and all the rest as one.

    .. math:: L = D(Q \| P) + \alpha D_1, \quad
              P(x) = \prod_{i < n} p_i(a_i)\; p_n(x), \quad Q(y) = \prod_{j < m} q_j(b_j)\; q_m(y)

    for a span of student tokens :math:`a_1 \ldots a_n` and teacher tokens :math:`b_1 \ldots b_m`. D compares cells,
    which are pairs (x, y) of a last student and a last teacher token, and the probability that is left on each side:

    - n = m = 1: the common pairs C, as :class:`GOLD` finds them;
    - n = 1: student tokens x that the teacher spells :math:`b_1 \ldots b_{m-1}\,y`;
    - m = 1: teacher tokens y that the student spells :math:`a_1 \ldots a_{n-1}\,x`;
    - both longer: the observed pair alone, which is the binary divergence of the span's likelihood (as in ALM).

    The observed pair is a cell of every span that is not one-to-one. There, :math:`D_1` compares C at the first row of
    each side, except for pairs with an observed first token or a cell's student token; these belong to the rest.

    With the same tokenizer it is :class:`TokenKL`.

    **What we chose.** One ``divergence`` for all terms (the branch can mix KL and Jensen-Shannon); the weight
    :math:`\alpha = 0.2` of its preset, without its factor 2 of spans that are not one-to-one and its filter of spans
    that the teacher finds improbable; the observed pair is a cell even if it is the only one (there, a span with dense
    teacher rows is left out then), and takes the place of cells that share a token with it.

    Args:
        divergence: Divergence of the two sides; ``forward`` is KL(teacher || student).
        first_weight: :math:`\alpha \ge 0`.
        teacher_top_k: Number of common pairs (or the rest) that are compared one by one in each row, those with the
            highest probability of the teacher; all others become one. None, the default, is exact.

    Raises:
        UserError: If ``teacher_top_k`` is not an integer >= 1, or ``first_weight`` not a finite number >= 0.

    References:
        [0] NeMo RL, NVIDIA, 2026: the loss ``prefix_bidir_partition_kl_v3`` of an unmerged branch that replaces P-KL,
            GOLD and H-KL.
    """

    student_rest: Tensor  # tokens in no pair
    teacher_rest: Tensor

    def __init__(
        self, *, divergence: Divergence = "forward", first_weight: float = 0.2, teacher_top_k: int | None = None
    ) -> None:
        super().__init__(divergence=divergence, teacher_top_k=teacher_top_k)
        check_not_negative("first_weight", first_weight, "0 leaves the term out")
        self.first_weight = first_weight
        self._planner: PartitionPlanner | None = None

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        """Finds the common pairs, and spells the tokens of each side in those of the other.

        Raises:
            UserError: If no token is common.
        """
        super().bind(student, teacher, projection)
        for name, side, common in (
            ("student_rest", student, self.student_common),
            ("teacher_rest", teacher, self.teacher_common),
        ):
            is_rest = torch.from_numpy(side.exists).index_fill(0, common, value=False)
            self.register_buffer(name, is_rest.nonzero().squeeze(1), persistent=False)
        pairs = self.student_common, self.teacher_common
        self._planner = PartitionPlanner(student, teacher, pairs, compares_first=self.first_weight > 0)

    def extra_repr(self) -> str:
        return f"first_weight={self.first_weight:g}, {super().extra_repr()}"

    @property
    def planner(self) -> Planner:
        assert self._planner is not None, "bind comes first"
        return self._planner.plan

    def state_bytes(self, student_size: int, teacher_size: int, *, learned: bool = False) -> int:
        """The pairs and the other tokens of both sides, and the counterparts: ``8 (2 V_s + V_t)``."""
        return torch.int64.itemsize * (2 * student_size + teacher_size)

    def forward(self, block: SpanBlock) -> SpanScores:
        assert isinstance(block.plan, PartitionPlan), "plan comes first"
        cells, student, teacher = block.plan.cells, block.student, block.teacher
        num_spans = len(student.first)
        span = student.span[cells.first_student]
        is_single = (student.length[span] == 1) & (teacher.length[span] == 1)
        nats = self._common(cells, student, teacher)
        weight = nats.new_full((len(nats),), self.first_weight).masked_fill(is_single, 1.0)
        loss = nats.new_zeros(num_spans).index_add(0, span, weight * nats)
        loss = loss.index_add(0, student.span[cells.last_student], self._longer(cells, student, teacher))
        common = student.first_rows().detach().index_select(1, self.student_common).exp().sum(-1)
        agreement = self.agreement(student.first_rows(), teacher.first_rows(), self.counterpart)
        return SpanScores(loss, (1 - common).clamp(0, 1), agreement)

    def _common(self, cells: SpanCells, student: SideRows, teacher: SideRows) -> Tensor:
        """``[K]`` nats of the common pairs and the rest at first rows."""
        excluded = cells.excluded_span, cells.excluded_pair
        sides = []
        for rows, first, common, rest in (
            (student, cells.first_student, self.student_common, self.student_rest),
            (teacher, cells.first_teacher, self.teacher_common, self.teacher_rest),
        ):
            log_probs = rows.log_probs.index_select(0, first)
            columns = finite(log_probs.index_select(1, common))  # [K, C]
            left = log_probs.index_select(1, rest).exp().sum(-1)
            left = left.index_add(0, excluded[0], columns[excluded].exp())
            columns = columns.index_put(excluded, columns.new_full((), torch.finfo(columns.dtype).min))
            sides.append(torch.cat((columns, log_clamped(left)[:, None]), dim=1))
        of_student, of_teacher = sides
        none = of_student.new_zeros(len(of_student))
        return generalized_divergence(
            of_teacher.to(of_student.dtype),
            of_student,
            none,
            none,
            divergence=self.divergence,
            top_k=self.teacher_top_k,
        )

    def _longer(self, cells: SpanCells, student: SideRows, teacher: SideRows) -> Tensor:
        """``[U]`` nats of the cells of spans that are not one-to-one."""
        p = _cell_log_probs(student, cells.last_student, cells.cell_span, cells.cell_student)
        q = _cell_log_probs(teacher, cells.last_teacher, cells.cell_span, cells.cell_teacher).to(p.dtype)
        rest_p, rest_q = (_rest(values, cells.cell_span, len(cells.last_student)) for values in (p, q))
        nats = _divergence(p, q, self.divergence)
        return _divergence(rest_p, rest_q, self.divergence).index_add(0, cells.cell_span, nats)


def _cell_log_probs(rows: SideRows, last: Tensor, cell_span: Tensor, token: Tensor) -> Tensor:
    """``[E]`` log-probability of each cell's tokens: the observed ones of its span but for the last."""
    # Finite, and small enough for their sums to stay exact.
    observed = rows.token_log_probs().clamp_min(LEAST_NATS)
    before_last = rows.sum_by_span(observed)[rows.span[last]] - observed[last]
    return before_last[cell_span] + rows.log_probs[last[cell_span], token].clamp_min(LEAST_NATS)


def _rest(log_probs: Tensor, cell_span: Tensor, num_spans: int) -> Tensor:
    """``[U]`` log-probability of all but the cells of each span."""
    mass = log_probs.new_zeros(num_spans).index_add(0, cell_span, log_probs.exp())
    return log_clamped(1 - mass)


def _divergence(student: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
    """The share of each cell in the divergence of two distributions, given as log-probabilities."""
    if divergence == "forward":
        return teacher.exp() * (teacher - student)
    if divergence == "reverse":
        return student.exp() * (student - teacher)
    middle = torch.logaddexp(student, teacher) - math.log(2)
    return 0.5 * (teacher.exp() * (teacher - middle) + student.exp() * (student - middle))
