"""Base of GOLD and H-KL: a divergence on the common tokens, a rank distance on the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from xtoken_pl.losses.base import SpanScores
from xtoken_pl.losses.counterparts import LossCounterparts, counterparts_in_pairs
from xtoken_pl.losses.divergence import Divergence, generalized_divergence
from xtoken_pl.losses.matched_rows import DivergenceLoss, Merge
from xtoken_pl.losses.uld import rank_distance
from xtoken_pl.projection import Projection, VocabularyPartition
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_not_negative
from xtoken_pl.utilities.errors import UserError

# S spans, C common pairs, U_s/U_t tokens of the rest (student/teacher)


def common_divergence(
    student_common: Tensor,
    teacher_common: Tensor,
    student_log_c: Tensor,
    teacher_log_c: Tensor,
    *,
    divergence: Divergence = "forward",
    top_k: int | None = None,
) -> Tensor:
    r"""The term of the common tokens, with the softmax over the full vocabularies.

    .. math:: \sum_{(s,t) \in C} \hat p_T[t] \log \frac{\hat p_T[t]}{\hat p_S[s]} - c_T + c_S, \quad \hat p = c\,p

    For spans of one token on both sides (c = 1) this is the published form, whose gradient pushes every uncommon
    logit j of the student down by :math:`p_S[j] \sum_{t \in C} p_T[t]` (Proposition 1). The masses
    :math:`-c_T + c_S` (ours) are those of the whole rows: with everything common it is the generalized KL, and
    together with a rank distance of at least the same weight it is never negative. The same for the reverse form;
    the Jensen-Shannon form needs no masses. For ``top_k`` see :func:`xtoken_pl.losses.divergence.keep_top_k`.

    Shape:
        student_common, teacher_common: ``[S, C]`` log-probabilities, not renormalized; student_log_c, teacher_log_c:
        ``[S]``; returns ``[S]``, nats.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, GOLD's common term and Proposition 1.
    """
    return generalized_divergence(
        teacher_common,
        student_common,
        teacher_log_c,
        student_log_c,
        divergence=divergence,
        teacher_mass=1.0,
        student_mass=1.0,
        top_k=top_k,
    )


class PartitionedLoss(DivergenceLoss):
    r"""Base of the losses that divide both vocabularies into common pairs C and the rest U.

    .. math:: \lambda_{KL} D_C(\hat p_T \| \hat p_S)
              + \lambda_{ULD} \|\mathrm{sort}_\downarrow \hat p_S|_{U_S} - \mathrm{sort}_\downarrow \hat p_T|_{U_T}\|_1

    See :func:`common_divergence` and :func:`xtoken_pl.losses.uld.rank_distance`. With ``merge="mean"`` the
    log-probabilities of a span's rows are averaged and renormalized over the whole vocabulary.

    Args:
        kl_weight: :math:`\lambda_{KL} \ge 0`.
        uld_weight: :math:`\lambda_{ULD} \ge 0`. Below ``kl_weight`` the loss can be negative.
        merge: How a span of several tokens becomes one row.
        divergence: Divergence of the common tokens; ``forward`` is KL(teacher || student).
        teacher_top_k: Teacher tokens kept in each row, of C and of the rest; see
            :class:`xtoken_pl.losses.MatchedRowLoss`.

    Raises:
        UserError: If a weight is negative, or both are zero; when bound, if no token is common.
    """

    #: Way out that is named if no token is common.
    way_out: ClassVar[str]

    student_common: Tensor  # [C]
    teacher_common: Tensor  # [C]
    student_rest: Tensor  # [U_s]
    teacher_rest: Tensor  # [U_t]
    counterpart: Tensor  # [V_s], the teacher's token of each pair, -1 for none

    def __init__(
        self,
        *,
        kl_weight: float = 1.0,
        uld_weight: float = 1.0,
        merge: Merge = "chain_rule",
        divergence: Divergence = "forward",
        teacher_top_k: int | None = None,
    ) -> None:
        super().__init__(merge=merge, divergence=divergence, teacher_top_k=teacher_top_k)
        self.kl_weight = check_not_negative("kl_weight", kl_weight, "0 leaves the common term out")
        self.uld_weight = check_not_negative("uld_weight", uld_weight, "0 leaves the rank term out")
        if kl_weight == uld_weight == 0:
            raise UserError("kl_weight or uld_weight must be > 0, got 0 and 0: the loss would be zero everywhere")
        self._partition: VocabularyPartition | None = None

    @abstractmethod
    def partition(
        self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None
    ) -> VocabularyPartition:
        """Pairs the tokens of both vocabularies; called by :meth:`bind`."""

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        """Builds the partition.

        Raises:
            UserError: If no token is common.
        """
        partition = self.partition(student, teacher, projection)
        if len(partition) == 0:
            raise UserError(
                f"{type(self).__name__} needs tokens that both vocabularies share, but {student.name!r} and "
                f"{teacher.name!r} have none in common ({partition}); {self.way_out}"
            )
        self._partition = partition
        buffers = {name: getattr(partition, name) for name in partition.__dataclass_fields__}
        for name, tensor in (buffers | {"counterpart": partition.counterpart(len(student))}).items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def can_be_negative(self) -> bool:
        return self.uld_weight < self.kl_weight and self.divergence != "jensen_shannon"

    def counterparts(self, student_ids: Iterable[int]) -> LossCounterparts:
        return counterparts_in_pairs(self.counterpart, student_ids)

    def state_bytes(self, student_size: int, teacher_size: int, *, learned: bool = False) -> int:
        """Both sides of the partition and the counterparts: ``8 (2 V_s + V_t)``."""
        return torch.int64.itemsize * (2 * student_size + teacher_size)

    def extra_repr(self) -> str:
        described = f"{super().extra_repr()}, kl_weight={self.kl_weight:g}, uld_weight={self.uld_weight:g}"
        return described if self._partition is None else f"{described}, {self._partition}"

    def score_rows(
        self, student_log_probs: Tensor, teacher_log_probs: Tensor, student_log_c: Tensor, teacher_log_c: Tensor
    ) -> SpanScores:
        student_rest = student_log_probs.index_select(1, self.student_rest).exp()
        teacher_rest = teacher_log_probs.index_select(1, self.teacher_rest).exp()
        loss = self.kl_weight * common_divergence(
            student_log_probs.index_select(1, self.student_common),
            teacher_log_probs.index_select(1, self.teacher_common),
            student_log_c,
            teacher_log_c,
            **self.options,
        )
        if self.uld_weight:
            student_hat = student_rest * student_log_c.exp()[:, None]
            teacher_hat = teacher_rest * teacher_log_c.exp()[:, None]
            loss = loss + self.uld_weight * rank_distance(student_hat, teacher_hat, self.teacher_top_k)
        unmapped_mass = student_rest.detach().sum(-1).clamp(0, 1)
        return SpanScores(loss, unmapped_mass, self.agreement(student_log_probs, teacher_log_probs, self.counterpart))
