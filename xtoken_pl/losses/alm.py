"""ALM, approximate likelihood matching: spans are compared by their likelihoods alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xtoken_pl.losses.base import SpanBlock, SpanLoss, SpanScores
from xtoken_pl.losses.divergence import Divergence
from xtoken_pl.losses.row_content import RowContent
from xtoken_pl.projection import Projection, VocabularyPartition
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_choice
from xtoken_pl.utilities.errors import UserError

# S spans, V_s student's vocabulary size

#: Distance of an exponent from 0, so that the logarithm of 1 - p and its gradient stay finite at p = 1.
_EPSILON = 1e-6


def log_one_minus_exp(x: Tensor) -> Tensor:
    """``log(1 - exp(x))`` for x < 0, accurate near 0 and far from it."""
    near = x > -math.log(2)
    # Each branch gets arguments of its own half, so that the other one's gradient is finite, too.
    log_near = (-torch.expm1(x.masked_fill(~near, -0.5))).log()
    log_far = torch.log1p(-x.masked_fill(near, -1.0).exp())
    return torch.where(near, log_near, log_far)


def binary_divergence(student_log_p: Tensor, teacher_log_p: Tensor, divergence: Divergence = "forward") -> Tensor:
    r"""Divergence between the distributions (p, 1 - p) of both sides.

    Args:
        divergence: ``forward`` is KL(teacher || student).

    Shape:
        ``[S]`` logarithms of p, below 0; returns ``[S]``, nats.
    """

    student, teacher = (torch.stack((x, log_one_minus_exp(x)), dim=-1) for x in (student_log_p, teacher_log_p))
    if divergence == "forward":
        return _kl(teacher, student)
    if divergence == "reverse":
        return _kl(student, teacher)
    middle = torch.logaddexp(teacher, student) - math.log(2)
    return 0.5 * (_kl(teacher, middle) + _kl(student, middle))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class ALM(SpanLoss):
    r"""Approximate likelihood matching: the binary divergence between the likelihoods of each span.

    .. math:: D\bigl((a, 1 - a), (b, 1 - b)\bigr), \quad a = P_T^{1/\tau}, \quad b = P_S^{1/\tau}

    with the probabilities :math:`P_T` and :math:`P_S` of all of the span's tokens, the first one included; D is
    KL(teacher || student) by default. It is 0 where both sides find the span equally probable. Spans of all kinds take
    part alike. Only the observed tokens have a gradient of their own: the loss does not say where the teacher's other
    mass lies.

    For large :math:`\tau` the loss is about :math:`1/\tau` of

    .. math:: \log P_T - \log P_S + \log P_T \log \frac{\log P_S}{\log P_T}

    (forward), and so is its gradient: against another loss it needs a larger weight, or
    :class:`xtoken_pl.callbacks.DynamicLossScaling`. A teacher's ``temperature`` divides the logits as in every loss and
    has nothing to do with :math:`\tau`.

    **What we chose.** The divergence is KL, which the authors' program replaces by the cross-entropy, the same up to a
    constant. As there, both exponents are lowered by 1e-6, so that :math:`\log(1 - p)` is finite at p = 1; below about
    that distance from 1 nothing is told apart. Left out: chunks of several spans, the correction for where a chunk ends
    (debiasing), and weights by the number of tokens.

    Rows of span starts are all that is read of the teacher, of any number of tokens. Where only k tokens of a row are
    stored and the teacher's temperature is not 1, a first token that is not among them counts with an even share of the
    tail.

    Args:
        tau: Temperature :math:`\tau > 0` of the likelihoods.
        divergence: Divergence of the two sides; ``forward`` is KL(teacher || student).

    Raises:
        UserError: If ``tau`` is not a finite number > 0.

    References:
        [0] Minixhofer et al., Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, 2025,
            https://arxiv.org/abs/2503.20083; program: https://github.com/bminixhofer/tokenkit
    """

    counterpart: Tensor  # [V_s], the teacher's token of equal bytes or role, -1 for none

    def __init__(self, tau: float = 100.0, *, divergence: Divergence = "forward") -> None:
        super().__init__()
        if not (math.isfinite(tau) and tau > 0):
            raise UserError(f"tau must be a finite number > 0, got {tau}; 1 compares the likelihoods as they are")
        self.tau = tau
        self.divergence: Divergence = check_choice("divergence", divergence, Divergence)

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        counterpart = VocabularyPartition.strict(student, teacher).counterpart(len(student))
        self.register_buffer("counterpart", counterpart, persistent=False)

    @property
    def row_needs(self) -> RowContent:
        return RowContent("span_starts")

    def state_bytes(self, student_size: int, teacher_size: int, *, learned: bool = False) -> int:
        """The counterpart of each student token: ``8 V_s``."""
        return torch.int64.itemsize * student_size

    def extra_repr(self) -> str:
        return f"tau={self.tau:g}, divergence={self.divergence}"

    def forward(self, block: SpanBlock) -> SpanScores:
        student, teacher = (side.log_likelihood() / self.tau - _EPSILON for side in (block.student, block.teacher))
        agreement = self.agreement(block.student.first_rows(), block.teacher.first_rows(), self.counterpart)
        return SpanScores(binary_divergence(student, teacher, self.divergence), torch.ones_like(teacher), agreement)
