"""ULD: sorted probabilities are compared by rank, whatever tokens they belong to."""

from __future__ import annotations

import torch
from torch import Tensor

from xtoken_pl.losses.base import MatchedRowLoss, SpanScores
from xtoken_pl.projection import Projection, VocabularyPartition
from xtoken_pl.tokenization import CanonicalVocabulary

# S spans, U_s/U_t columns (student/teacher)


def rank_distance(student_probs: Tensor, teacher_probs: Tensor) -> Tensor:
    r"""Distance of two rows by rank, :math:`\|\mathrm{sort}_\downarrow(p_S) - \mathrm{sort}_\downarrow(p_T)\|_1`.

    The shorter side is padded with zeros. All values are sorted, none is dropped.

    Shape:
        student_probs: ``[S, U_s]``; teacher_probs: ``[S, U_t]``; returns ``[S]``.

    References:
        [0] Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs,
            2024, https://arxiv.org/abs/2402.12030
    """
    student = student_probs.sort(dim=-1, descending=True).values
    teacher = teacher_probs.sort(dim=-1, descending=True).values
    common = min(student.shape[-1], teacher.shape[-1])
    distance = (student[:, :common] - teacher[:, :common]).abs().sum(-1)
    return distance + student[:, common:].sum(-1) + teacher[:, common:].sum(-1)


class ULD(MatchedRowLoss):
    r"""Universal logit distillation: the sorted probabilities of both sides, compared by rank.

    .. math:: \|\mathrm{sort}_\downarrow \hat p_S - \mathrm{sort}_\downarrow \hat p_T\|_1

    over the whole vocabularies; see :func:`rank_distance`. It compares no token with another, so that all of the
    student's probability counts as unmapped. In evaluation the agreement is that of tokens with equal bytes.

    Args:
        merge: How a span of several tokens becomes one row.
    """

    counterpart: Tensor  # [V_s], the teacher's token of equal bytes, -1 for none

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        counterpart = VocabularyPartition.strict(student, teacher).counterpart(len(student))
        self.register_buffer("counterpart", counterpart, persistent=False)

    def score_rows(
        self, student_log_probs: Tensor, teacher_log_probs: Tensor, student_log_c: Tensor, teacher_log_c: Tensor
    ) -> SpanScores:
        student, teacher = student_log_probs + student_log_c[:, None], teacher_log_probs + teacher_log_c[:, None]
        loss = rank_distance(student.exp(), teacher.exp())
        agreement = self.agreement(student_log_probs, teacher_log_probs, self.counterpart)
        return SpanScores(loss, torch.ones_like(teacher_log_c), agreement)
