"""P-KL: the student's probabilities are projected to the teacher's vocabulary by W and compared there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Self, cast

import torch
from torch import Tensor

from xtoken_pl.losses.base import SpanBlock, SpanScores
from xtoken_pl.losses.counterparts import LossCounterparts, counterparts_in_projection
from xtoken_pl.losses.divergence import Divergence, generalized_divergence, log_clamped, merge_others
from xtoken_pl.losses.matched_rows import DivergenceLoss, Merge
from xtoken_pl.losses.top_columns import top_columns
from xtoken_pl.projection import LearnedProjection, Projection
from xtoken_pl.projection.kept_columns import KeptColumns
from xtoken_pl.projection.sparse import SparseProduct
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.precision import keep_dtype


def projection_kl(
    projected_probs: Tensor,
    teacher_log_probs: Tensor,
    student_log_c: Tensor,
    teacher_log_c: Tensor,
    *,
    divergence: Divergence = "forward",
) -> Tensor:
    r"""Projected KL (P-KL) of a span between a teacher and a student of another vocabulary.

    .. math:: D(\hat p_T \| \tilde p_S), \quad \tilde p_S = W^\top \hat p_S, \quad \hat p = c\,p

    with the generalized KL :math:`D(p \| q) = \sum_v p_v \log(p_v / q_v) - \sum_v p_v + \sum_v q_v`, or another form
    of :func:`xtoken_pl.losses.divergence.generalized_divergence`. All sums run over the R teacher tokens that W
    reaches: for the others the student's probability is zero whatever it learns, and the divergence would be infinite
    by a constant.

    Args:
        projected_probs: Projected probabilities :math:`W^\top p_S` of the tokens that W reaches.
        teacher_log_probs: The teacher's log-probabilities of the same tokens, not renormalized.

    Shape:
        projected_probs, teacher_log_probs: ``[S, R]``; student_log_c, teacher_log_c: ``[S]``; returns ``[S]``, nats.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, P-KL. The generalized KL and the support are ours.
    """
    return generalized_divergence(
        teacher_log_probs,
        log_clamped(projected_probs),
        teacher_log_c,
        student_log_c,
        divergence=divergence,
        student_mass=projected_probs.sum(-1),
    )


class ProjectionKL(DivergenceLoss):
    r"""P-KL, :math:`D(\hat p_T \| W^\top \hat p_S)` over the teacher's vocabulary; see :func:`projection_kl`.

    With ``merge="mean"`` the teacher's log-probabilities and the student's projected probabilities are averaged over
    the span, both are renormalized over the teacher tokens that W reaches, and the plain KL is taken.

    Args:
        merge: How a span of several tokens becomes one row.
        divergence: Divergence of the two sides; ``forward`` is KL(teacher || student).
        teacher_top_k: Teacher tokens kept in each row; see :class:`xtoken_pl.losses.MatchedRowLoss`.
    """

    needs_projection = True
    can_learn_projection = True

    # R teacher tokens that W reaches
    product: SparseProduct  # rows [S, V_s] times W, the columns that it reaches
    reached: Tensor  # [R], teacher ids

    def __init__(
        self, *, merge: Merge = "chain_rule", divergence: Divergence = "forward", teacher_top_k: int | None = None
    ) -> None:
        super().__init__(merge=merge, divergence=divergence, teacher_top_k=teacher_top_k)
        #: W with weights that are learned, or None.
        self.learned: LearnedProjection | None = None
        #: W at the start, or None before :meth:`bind`.
        self.initial_projection: Projection | None = None

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        """Takes W.

        Raises:
            UserError: If W is missing, or reaches no teacher token.
        """
        if projection is None:
            raise UserError("ProjectionKL needs a projection; build one with build_projection")
        student_ids, teacher_ids, weights = projection.entries()
        if len(weights) == 0:
            raise UserError("a projection must map at least one token, got only zero rows")
        reached, columns = teacher_ids.unique(return_inverse=True)
        # W is no state: it is built from the tokenizers, or read from its own file.
        self.product = SparseProduct(student_ids, columns, projection.num_student, len(reached), weights)
        self.register_buffer("reached", reached, persistent=False)
        self.initial_projection = projection
        self.__dict__.pop("kept_columns", None)

    def learn_projection(self) -> None:
        """Makes the weights of W parameters; see :class:`xtoken_pl.projection.LearnedProjection`."""
        assert self.initial_projection is not None, "bind comes first"
        self.learned = LearnedProjection(self.initial_projection)

    @property
    def projection(self) -> Projection:  # type: ignore[override]
        """W as it stands."""
        assert self.initial_projection is not None, "bind comes first"
        return self.initial_projection if self.learned is None else self.learned.to_projection()

    def in_teacher_tokens(self, student_probs: Tensor) -> tuple[Tensor, Tensor]:
        return self.project(student_probs), self.reached

    def counterparts(self, student_ids: Iterable[int]) -> LossCounterparts:
        return counterparts_in_projection(self.projection, student_ids)

    def extra_repr(self) -> str:
        if self.initial_projection is None:
            return super().extra_repr()
        counts = self.initial_projection.counts
        return (
            f"{super().extra_repr()}, W: {counts.exact:,} exact, {counts.multi_token:,} multi-token, "
            f"{counts.zero:,} zero rows, {len(self.reached):,} teacher tokens reached"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(keep_dtype(fn), recurse)

    @cached_property
    def kept_columns(self) -> KeptColumns:
        """W's columns that ``teacher_top_k`` keeps, on a CPU; made when a step first needs them."""
        assert self.initial_projection is not None, "bind comes first"
        with torch.inference_mode(mode=False):  # or training could not use what a validation before it made
            student_ids, teacher_ids, weights = self.initial_projection.entries()
            reached, columns = teacher_ids.unique(return_inverse=True)
            return KeptColumns(student_ids, columns, self.initial_projection.num_student, len(reached), weights)

    def project(self, probs: Tensor) -> Tensor:
        """``[S, V_s] -> [S, R]``: Wᵀ applied to rows, the teacher tokens that it reaches."""
        learned = self.learned
        return cast(Tensor, self.product(probs) if learned is None else self.product(probs, learned(), learned.entries))

    def score_rows(
        self, student_log_probs: Tensor, teacher_log_probs: Tensor, student_log_c: Tensor, teacher_log_c: Tensor
    ) -> SpanScores:
        kept, teacher = self._kept(teacher_log_probs.index_select(1, self.reached))
        if kept is not None and self._reads_columns(student_log_probs.device):
            projected = self.kept_columns(student_log_probs, kept, None if self.learned is None else self.learned())
        else:
            projected = _merged(self.project(student_log_probs.exp()), kept)
        loss = projection_kl(projected, teacher, student_log_c, teacher_log_c, divergence=self.divergence)
        return self._scores(loss, projected, lambda: self.project(student_log_probs.exp()), teacher_log_probs)

    def score_mean(self, block: SpanBlock) -> SpanScores:
        # W is linear, so that the average is projected once instead of every row.
        whole = self.project(block.student.mean_rows(block.student.log_probs.exp()))
        teacher_log_probs = block.teacher.mean_rows(block.teacher.log_probs)
        kept, teacher = self._kept(teacher_log_probs.index_select(1, self.reached).log_softmax(-1))
        projected = _merged(whole, kept)
        student = log_clamped(projected) - log_clamped(projected.sum(-1, keepdim=True))
        no_continuation = teacher.new_zeros(len(teacher))
        loss = generalized_divergence(teacher, student, no_continuation, no_continuation, divergence=self.divergence)
        return self._scores(loss, projected, lambda: whole, teacher_log_probs)

    @staticmethod
    def _reads_columns(device: torch.device) -> bool:
        """Whether only kept columns of W are read: not on a GPU, which would wait for the number of their entries."""
        return device.type == "cpu"

    def _kept(self, teacher_log_probs: Tensor) -> tuple[Tensor | None, Tensor]:
        """``[S, R]`` -> ``[S, k]`` columns that ``teacher_top_k`` keeps, ``[S, k + 1]`` with all others merged, last.

        None and the whole rows where it keeps all.
        """
        if self.teacher_top_k is None or self.teacher_top_k >= len(self.reached):
            return None, teacher_log_probs
        kept = top_columns(teacher_log_probs, self.teacher_top_k)
        return kept, merge_others(teacher_log_probs, kept)

    def _scores(
        self, loss: Tensor, projected: Tensor, whole: Callable[[], Tensor], teacher_log_probs: Tensor
    ) -> SpanScores:
        unmapped_mass = (1 - projected.detach().sum(-1)).clamp(0, 1)
        agreement = None if self.training else self.agreement(whole().detach(), teacher_log_probs, self.reached)
        return SpanScores(loss, unmapped_mass, agreement)


def _merged(projected: Tensor, kept: Tensor | None) -> Tensor:
    """``[S, R], [S, k] -> [S, k + 1]``: kept columns and the sum of the others, last; whole rows if none is given."""
    if kept is None:
        return projected
    others = projected.scatter(1, kept, 0.0).sum(-1, keepdim=True)
    return torch.cat((projected.gather(1, kept), others), dim=1)
