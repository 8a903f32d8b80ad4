"""Divergences between rows that need not sum to one."""

from __future__ import annotations

import torch
from torch import Tensor


def generalized_kl(
    teacher_log_probs: Tensor,
    student_log_probs: Tensor,
    teacher_log_c: Tensor,
    student_log_c: Tensor,
    student_mass: Tensor | None = None,
) -> Tensor:
    r"""Generalized Kullback-Leibler divergence between :math:`\hat p_T = c_T p_T` and :math:`\hat p_S = c_S p_S`.

    .. math::
        D(\hat p_T \| \hat p_S) = \sum_v \hat p_T[v] \log \frac{\hat p_T[v]}{\hat p_S[v]}
                                  - \sum_v \hat p_T[v] + \sum_v \hat p_S[v]

    Never negative, and zero exactly where both sides agree, although the sums differ from 1. With c = 1 and rows that
    sum to 1 it is the plain KL. All sums run over the columns given.

    Args:
        student_mass: The sum of the student's probabilities, where the caller has it already.

    Shape:
        teacher_log_probs, student_log_probs: ``[S, V]``; teacher_log_c, student_log_c, student_mass: ``[S]``;
        returns ``[S]``, nats.
    """
    if student_mass is None:
        student_mass = student_log_probs.exp().sum(-1)
    teacher_probs = teacher_log_probs.exp()
    teacher_mass = teacher_probs.sum(-1)
    # 0 log 0 = 0: ids that do not exist are -inf, and 0 times the lowest number is 0.
    teacher_term = (teacher_probs * _finite(teacher_log_probs)).sum(-1)
    student_term = (teacher_probs * _finite(student_log_probs)).sum(-1)
    cross = teacher_term - student_term
    return (
        teacher_log_c.exp() * (cross + teacher_mass * (teacher_log_c - student_log_c) - teacher_mass)
        + student_log_c.exp() * student_mass
    )


def _finite(log_probs: Tensor) -> Tensor:
    return log_probs.clamp_min(torch.finfo(log_probs.dtype).min)


def log_clamped(probs: Tensor) -> Tensor:
    """Logarithm of probabilities; one that underflowed to zero counts as the smallest normal number."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
