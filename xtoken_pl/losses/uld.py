"""ULD: sorted probabilities are compared by rank, whatever tokens they belong to."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xtoken_pl.losses.base import SpanScores
from xtoken_pl.losses.matched_rows import MatchedRowLoss
from xtoken_pl.projection import Projection, VocabularyPartition
from xtoken_pl.tokenization import CanonicalVocabulary

# S spans, U_s/U_t columns (student/teacher)


def rank_distance(student_probs: Tensor, teacher_probs: Tensor, top_k: int | None = None) -> Tensor:
    r"""Distance of two rows by rank, :math:`\|\mathrm{sort}_\downarrow(p_S) - \mathrm{sort}_\downarrow(p_T)\|_1`.

    The shorter side is padded with zeros. All values are sorted, none is dropped. A gradient reaches the student.

    Args:
        top_k: Compare the k highest values of each side by rank, and the sum of all others; never above the whole
            distance. None compares all.

    Shape:
        student_probs: ``[S, U_s]``; teacher_probs: ``[S, U_t]``, both >= 0; returns ``[S]``.

    References:
        [0] Boizard et al., Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs,
            2024, https://arxiv.org/abs/2402.12030
    """
    if top_k is None or top_k >= max(student_probs.shape[1], teacher_probs.shape[1]):
        return cast(Tensor, _RankDistance.apply(student_probs, teacher_probs))
    student, teacher = (_highest(probs, top_k) for probs in (student_probs, teacher_probs))
    tails = student_probs.sum(-1) - student.sum(-1) - (teacher_probs.sum(-1) - teacher.sum(-1))
    return (student - teacher).abs().sum(-1) + tails.abs()


def _highest(probs: Tensor, top_k: int) -> Tensor:
    """``[S, U] -> [S, k]``: the k highest values in descending order, zeros where there are fewer."""
    highest = probs.topk(min(top_k, probs.shape[1]), dim=-1).values
    return F.pad(highest, (0, top_k - highest.shape[1]))


class _RankDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_probs: Tensor, teacher_probs: Tensor) -> Tensor:
        student, places = sort_rows(student_probs) if ctx.needs_input_grad[0] else (sort_values(student_probs), None)
        teacher = sort_values(teacher_probs)
        common = min(student.shape[1], teacher.shape[1])
        # Ascending: equal ranks are equally far from the end. What only one side has meets zeros.
        difference = student.clone()
        difference[:, student.shape[1] - common :] -= teacher[:, teacher.shape[1] - common :]
        if places is not None:
            signs = difference.sign()
            signs[:, : student.shape[1] - common] = 1.0  # also for what has underflowed
            ctx.save_for_backward(torch.empty_like(signs).scatter_(1, places, signs))
        return difference.abs_().sum(-1) + teacher[:, : teacher.shape[1] - common].sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (signs,) = ctx.saved_tensors
        return signs * grad[:, None], None


def sort_values(rows: Tensor) -> Tensor:
    """``[N, U] -> [N, U]``: every row in ascending order; on two cores numpy sorts 7 x faster than torch."""
    if rows.device.type != "cpu" or rows.dtype == torch.bfloat16:  # which numpy does not know
        return rows.sort(dim=-1).values
    values = rows.clone(memory_format=torch.contiguous_format)
    values.numpy().sort(axis=-1)
    return values


def sort_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``[N, U] -> [N, U], [N, U]``: every row of numbers >= 0 in ascending order, and the places of its values.

    The bits of such numbers are in their order. On two cores numpy sorts them, with the place behind the value, 3 x
    faster than torch sorts numbers with their places.
    """
    if rows.device.type != "cpu" or rows.dtype != torch.float32:
        result = rows.sort(dim=-1)
        return result.values, result.indices
    keys = rows.contiguous().view(torch.int32).long()
    keys.bitwise_and_(0x7FFFFFFF)  # without the sign, which a NaN may have
    keys.bitwise_left_shift_(32).bitwise_or_(torch.arange(rows.shape[1], device=rows.device))
    keys.numpy().sort(axis=-1)
    return (keys >> 32).int().view(torch.float32), keys & 0xFFFFFFFF


class ULD(MatchedRowLoss):
    r"""Universal logit distillation: the sorted probabilities of both sides, compared by rank.

    .. math:: \|\mathrm{sort}_\downarrow \hat p_S - \mathrm{sort}_\downarrow \hat p_T\|_1

    over the whole vocabularies; see :func:`rank_distance`. It compares no token with another, so that all of the
    student's probability counts as unmapped. In evaluation the agreement is that of tokens with equal bytes.

    Args:
        merge: How a span of several tokens becomes one row.
        teacher_top_k: Ranks that are compared one by one; see :func:`rank_distance`.
    """

    counterpart: Tensor  # [V_s], the teacher's token of equal bytes, -1 for none

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        counterpart = VocabularyPartition.strict(student, teacher).counterpart(len(student))
        self.register_buffer("counterpart", counterpart, persistent=False)

    def state_bytes(self, student_size: int, teacher_size: int, *, learned: bool = False) -> int:
        """The counterpart of each student token: ``8 V_s``."""
        return torch.int64.itemsize * student_size

    def score_rows(
        self, student_log_probs: Tensor, teacher_log_probs: Tensor, student_log_c: Tensor, teacher_log_c: Tensor
    ) -> SpanScores:
        student, teacher = student_log_probs + student_log_c[:, None], teacher_log_probs + teacher_log_c[:, None]
        loss = rank_distance(student.exp(), teacher.exp(), self.teacher_top_k)
        agreement = self.agreement(student_log_probs, teacher_log_probs, self.counterpart)
        return SpanScores(loss, torch.ones_like(teacher_log_c), agreement)
