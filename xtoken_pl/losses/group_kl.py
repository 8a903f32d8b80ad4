"""KL over groups of student tokens: groups that are columns of a matrix, and groups that are lists of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from xtoken_pl.losses.divergence import smallest_prob

# P rows, R of them, C columns, G branches, M members of branches, V vocabulary size


class ColumnSums(nn.Module):
    """Sums the tokens of each column: ``[N, V] -> [N, C]``. One token of each is gathered, the others are added.

    Args:
        column: ``[V]`` the column of each token, -1 for none; every column has a token.
    """

    column: Tensor  # [V] columns, C for none
    first: Tensor  # [C] tokens
    others: Tensor  # [V'] tokens
    column_of_other: Tensor  # [V']

    def __init__(self, column: Tensor) -> None:
        super().__init__()
        tokens = (column >= 0).nonzero().squeeze(1)
        tokens = tokens[column[tokens].argsort(stable=True)]
        is_first = column[tokens] != torch.cat((column.new_full((1,), -1), column[tokens[:-1]]))
        others = tokens[~is_first]
        buffers = {"first": tokens[is_first], "others": others, "column_of_other": column[others]}
        buffers["column"] = torch.where(column < 0, int(is_first.sum()), column)
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        sums = rows.index_select(1, self.first)
        return sums.index_add_(1, self.column_of_other, rows.index_select(1, self.others))


@dataclass(frozen=True)
class Groups:
    r"""The teacher's mass of the groups of some rows, not normalized.

    A token belongs to its column, unless it is a member of one of the row's branches.

    Attributes:
        row: ``[R]`` increasing.
        column_mass: ``[R, C]``.
        sums: Sums from tokens to columns; None if every token is a column.
        branch_mass: ``[G]``.
        branch_position: ``[G]`` places in ``row``.
        member_branch, member: ``[M]`` the branch, and the place ``r * V + token`` in the rows ``[R, V]``.
    """

    row: Tensor
    column_mass: Tensor
    sums: ColumnSums | None
    branch_mass: Tensor
    branch_position: Tensor
    member_branch: Tensor
    member: Tensor


def group_kl(student_log_probs: Tensor, *groups: Groups) -> Tensor:
    r"""KL between the teacher and the student over the groups of every row.

    .. math:: \sum_g Q_g \log \frac{Q_g}{\sum_{s \in g} p_S(s)}, \quad \sum_g Q_g = 1

    The masses are normalized here. A row of no groups, or without any mass, has loss zero. The gradient
    :math:`-p_S(s)\, Q_g / P_g` is written by hand: it is a gather of ratios, and the members are few. A group whose
    :math:`P_g` underflows counts as 2e-31 (in single precision), and then has no gradient.

    Shape:
        student_log_probs: ``[P, V]``; returns ``[P]``, nats.
    """
    return cast(Tensor, _GroupKL.apply(student_log_probs, groups))


class _GroupKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, groups: tuple[Groups, ...]) -> Tensor:
        loss = log_probs.new_zeros(len(log_probs))
        smallest = smallest_prob(log_probs.dtype)
        groups = tuple(
            replace(part, column_mass=part.column_mass.to(log_probs), branch_mass=part.branch_mass.to(log_probs))
            for part in groups
        )
        saved: list[Tensor] = []
        for part in groups:
            probs = _select(log_probs, part.row).exp()  # [R, V]
            column_ratio = part.column_mass / (probs if part.sums is None else part.sums(probs)).clamp_min(smallest)
            of_branches = torch.zeros_like(part.branch_mass)
            of_branches.index_add_(0, part.member_branch, probs.view(-1)[part.member])
            branch_ratio = part.branch_mass / of_branches.clamp_min(smallest)
            nats = (part.column_mass * column_ratio.clamp_min(smallest).log()).sum(-1)
            total = part.column_mass.sum(-1)
            nats.index_add_(0, part.branch_position, part.branch_mass * branch_ratio.clamp_min(smallest).log())
            total.index_add_(0, part.branch_position, part.branch_mass)
            scale = 1 / total.clamp_min(smallest)
            loss[part.row] = torch.where(total <= smallest, 0.0, nats * scale - total.clamp_min(smallest).log())
            saved += [probs, column_ratio, branch_ratio, torch.where(total <= smallest, 0.0, scale)]
        ctx.groups = groups
        ctx.shape = log_probs.shape
        ctx.save_for_backward(*saved)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        saved = ctx.saved_tensors
        parts = [saved[place : place + 4] for place in range(0, len(saved), 4)]
        results = []
        for part, (probs, column_ratio, branch_ratio, scale) in zip(ctx.groups, parts, strict=True):
            if part.sums is None:
                ratio = column_ratio.clone()
            else:
                none = column_ratio.new_zeros(len(column_ratio), 1)
                ratio = torch.cat((column_ratio, none), dim=1).index_select(1, part.sums.column)  # [R, V]
            ratio.view(-1)[part.member] = branch_ratio[part.member_branch]
            results.append(ratio.mul_(probs).mul_((-grad[part.row] * scale)[:, None]))
        whole = [result for result in results if len(result) == ctx.shape[0]]
        if whole:
            return whole[0], None
        log_prob_grad = grad.new_zeros(ctx.shape)
        for part, result in zip(ctx.groups, results, strict=True):
            log_prob_grad.index_copy_(0, part.row, result)
        return log_prob_grad, None


def _select(rows: Tensor, index: Tensor) -> Tensor:
    """The rows of an increasing index; all of them where it has as many."""
    return rows if len(index) == len(rows) else rows.index_select(0, index)
