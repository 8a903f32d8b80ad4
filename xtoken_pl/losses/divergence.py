"""Divergences between rows that need not sum to one."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xtoken_pl.losses.top_columns import top_columns

Divergence = Literal["forward", "reverse", "jensen_shannon"]


def generalized_divergence(
    teacher_log_probs: Tensor,
    student_log_probs: Tensor,
    teacher_log_c: Tensor,
    student_log_c: Tensor,
    *,
    divergence: Divergence = "forward",
    teacher_mass: Tensor | float | None = None,
    student_mass: Tensor | float | None = None,
    top_k: int | None = None,
) -> Tensor:
    r"""Divergence between :math:`\hat p_T = c_T p_T` and :math:`\hat p_S = c_S p_S`, whose sums may differ from 1.

    .. math::
        \text{forward: } & \sum_v \hat p_T[v] \log \frac{\hat p_T[v]}{\hat p_S[v]} - c_T M_T + c_S M_S \\
        \text{reverse: } & \sum_v \hat p_S[v] \log \frac{\hat p_S[v]}{\hat p_T[v]} - c_S M_S + c_T M_T \\
        \text{Jensen-Shannon: } & \tfrac12 \sum_v \hat p_T[v] \log \frac{\hat p_T[v]}{m[v]}
                                + \tfrac12 \sum_v \hat p_S[v] \log \frac{\hat p_S[v]}{m[v]},
                                \quad m = \tfrac12 (\hat p_T + \hat p_S)

    With the masses M of the columns given, the default, it is never negative, and zero exactly where both sides
    agree. With c = 1 and rows that sum to 1 it is the plain divergence.

    Args:
        divergence: ``forward`` is KL(teacher || student).
        teacher_mass, student_mass: M; the sums of the columns where they are not given.
        top_k: Columns of the teacher that are compared one by one; see :func:`keep_top_k`.

    Shape:
        teacher_log_probs, student_log_probs: ``[S, V]``, finite (see :func:`finite`); teacher_log_c, student_log_c,
        masses: ``[S]``; returns ``[S]``, nats.
    """
    teacher_log_probs, student_log_probs = keep_top_k(teacher_log_probs, student_log_probs, top_k)
    if divergence == "jensen_shannon":
        teacher = teacher_log_probs + teacher_log_c[:, None]
        student = student_log_probs + student_log_c[:, None]
        log_middle = torch.logaddexp(teacher, student) - math.log(2)
        return 0.5 * (teacher.exp() * (teacher - log_middle) + student.exp() * (student - log_middle)).sum(-1)
    sides = [(teacher_log_probs, teacher_log_c, teacher_mass), (student_log_probs, student_log_c, student_mass)]
    (log_p, log_c, mass), (log_q, other_log_c, other_mass) = sides if divergence == "forward" else reversed(sides)
    p = log_p.exp()
    column_mass = p.sum(-1)
    mass = column_mass if mass is None else mass
    other_mass = log_q.exp().sum(-1) if other_mass is None else other_mass
    cross = (p * (log_p - log_q)).sum(-1)
    return log_c.exp() * (cross + column_mass * (log_c - other_log_c) - mass) + other_log_c.exp() * other_mass


def keep_top_k(teacher_log_probs: Tensor, student_log_probs: Tensor, top_k: int | None) -> tuple[Tensor, Tensor]:
    r"""The teacher's k most probable columns of each row as they are, all others as one: the tail.

    Both sides keep their mass, so that a divergence of the result is one of coarser distributions: never above that of
    the whole rows, and equal where k reaches the number of columns.

    Args:
        top_k: k, or None for all columns.

    Shape:
        ``[S, V]`` finite log-probabilities of both sides -> ``[S, k + 1]``, the tail last.
    """
    if top_k is None or top_k >= teacher_log_probs.shape[-1]:
        return teacher_log_probs, student_log_probs
    kept = top_columns(teacher_log_probs, top_k)
    return merge_others(teacher_log_probs, kept), merge_others(student_log_probs, kept)


def merge_others(log_probs: Tensor, kept: Tensor) -> Tensor:
    """Log-probabilities of some columns of each row, and behind them of all others together.

    Shape:
        log_probs: ``[S, V]``, finite; kept: ``[S, k]`` columns, each at most once in a row; returns ``[S, k + 1]``.
    """
    columns, others = _MergedOthers.apply(log_probs, kept)
    return torch.cat((columns, log_clamped(others)), dim=-1)


class _MergedOthers(torch.autograd.Function):
    """``[S, k]`` log-probabilities of kept columns, and ``[S, 1]`` the probability of the others."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        # On a CPU twice as fast as exp; exact but for the rounding that log_probs have, too.
        probs = (log_probs * math.log2(math.e)).exp2_().scatter_(-1, kept, 0.0)
        ctx.save_for_backward(probs, kept)
        return log_probs.gather(-1, kept), probs.sum(-1, keepdim=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_columns: Tensor, of_others: Tensor) -> tuple[Tensor, None]:
        probs, kept = ctx.saved_tensors
        return (probs * of_others).scatter_(-1, kept, of_columns), None


def finite(log_probs: Tensor) -> Tensor:
    """Raises -inf, of ids that do not exist, to the lowest finite number: then 0 log 0 and its gradient are 0."""
    return log_probs.clamp_min(torch.finfo(log_probs.dtype).min)


def log_clamped(probs: Tensor) -> Tensor:
    """Logarithm of probabilities; one that underflows counts as 2e-31 (in single precision).

    That is far above the smallest normal number, so that the gradient 1/p stays finite under a gradient scaler.
    """
    return probs.clamp_min(smallest_prob(probs.dtype)).log()


def smallest_prob(dtype: torch.dtype) -> float:
    """Value that stands for a probability that underflows."""
    return torch.finfo(dtype).tiny * 2**24
