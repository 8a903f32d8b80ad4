"""Divergences over groups of student tokens: groups that are columns of a matrix, or lists of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from xtoken_pl.losses.divergence import Divergence, smallest_prob

# P rows, R of them, C columns, G branches, M members of branches, V vocabulary size

#: Values of the groups of some rows: of columns ``[R, C]``, and of branches ``[G]``.
GroupValues = tuple[Tensor, Tensor]
#: Elementwise functions of P (or P~) and Q.
_Form = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


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

    A token belongs to its column, unless it is a member of one of the row's branches. The teacher cannot write the
    tokens of a group whose mass is exactly 0.

    The merged groups of a row are compared as one: only their sums count on both sides.

    Attributes:
        row: ``[R]`` increasing.
        column_mass: ``[R, C]``.
        sums: Sums from tokens to columns; None if every token is a column, and then that of a member has no mass.
        branch_mass: ``[G]``.
        branch_position: ``[G]`` places in ``row``.
        member_branch, member: ``[M]`` the branch, and the place ``r * V + token`` in the rows ``[R, V]``.
        merged: ``[R, C]`` and ``[G]`` bool, True for the groups that are merged, all of which have mass; None for none.
        others: ``[Z, V]`` bool, tokens of the last Z branches, which are in no column with mass; None for none.
    """

    row: Tensor
    column_mass: Tensor
    sums: ColumnSums | None
    branch_mass: Tensor
    branch_position: Tensor
    member_branch: Tensor
    member: Tensor
    merged: GroupValues | None = None
    others: Tensor | None = None

    @property
    def of_others(self) -> slice:
        """The branches whose tokens are ``others``: the last Z."""
        num_others = 0 if self.others is None else len(self.others)
        return slice(len(self.branch_mass) - num_others, len(self.branch_mass))

    @property
    def others_position(self) -> Tensor:
        """``[Z]`` places in ``row`` of these branches."""
        return self.branch_position[self.of_others]

    @property
    def mass(self) -> GroupValues:
        """``[R, C], [G]``: the masses of columns and of branches."""
        return self.column_mass, self.branch_mass

    def add_up(self, values: GroupValues) -> Tensor:
        """``[R, C], [G] -> [R]``: the sum over the groups of each row."""
        columns, branches = values
        return columns.sum(-1).index_add_(0, self.branch_position, branches)

    def add_up_merged(self, values: GroupValues) -> Tensor:
        """``[R, C], [G] -> [R]``: the sum over the merged groups of each row."""
        assert self.merged is not None
        columns, branches = (each.masked_fill(~merged, 0.0) for each, merged in zip(values, self.merged, strict=True))
        return self.add_up((columns, branches))

    def compare(self, form: _Form, student: GroupValues, teacher: GroupValues) -> list[GroupValues]:
        """Applies ``form`` to both sides' masses of each group; to the sums of a row for its merged groups."""
        columns, branches = (form(*sides) for sides in zip(student, teacher, strict=True))
        if self.merged is not None:
            of_sums = form(self.add_up_merged(student), self.add_up_merged(teacher))  # [R] each
            in_columns, in_branches = self.merged
            columns = tuple(torch.where(in_columns, r[:, None], c) for r, c in zip(of_sums, columns, strict=True))
            of_branches = (r[self.branch_position] for r in of_sums)
            branches = tuple(torch.where(in_branches, r, b) for r, b in zip(of_branches, branches, strict=True))
        return list(zip(columns, branches, strict=True))


def group_divergence(student_log_probs: Tensor, *groups: Groups, divergence: Divergence = "forward") -> Tensor:
    r"""Divergence between the teacher and the student over the groups of every row.

    .. math:: D(Q, \tilde P) - \log M, \quad P_g = \sum_{s \in g} p_S(s), \quad M = \sum_g P_g, \quad
              \tilde P_g = P_g / M

    over the groups that have mass; :math:`\sum_g Q_g = 1`, which is normalized here. D is
    :math:`KL(Q \| \tilde P)` (forward), :math:`KL(\tilde P \| Q)` (reverse) or the Jensen-Shannon divergence. The
    forward form is :math:`\sum_g Q_g \log(Q_g / P_g)`. A row of no groups, or without any mass, has loss zero.

    The gradient is written by hand: :math:`p_S(s)\, \partial L / \partial P_g` gathers a number of each group, and the
    members of branches are few.

    - forward: :math:`\partial L / \partial P_g = -Q_g / P_g`
    - reverse: :math:`(\log(\tilde P_g / Q_g) - KL(\tilde P \| Q) - 1) / M`
    - Jensen-Shannon: :math:`(\tfrac12 \log(\tilde P_g / m_g) - \tfrac12 KL(\tilde P \| m) - 1) / M`, m the mean of both

    A :math:`Q_g`, :math:`P_g` or M that underflows counts as 2e-31 (in single precision).

    Shape:
        student_log_probs: ``[P, V]``; returns ``[P]``, nats.
    """
    return cast(Tensor, _GroupDivergence.apply(student_log_probs, groups, divergence))


class _Scored(NamedTuple):
    """``[R]`` nats; and dL/dP of each group, which is ``factor`` ``[R]`` times ``columns`` ``[R, C]`` or ``branches``
    ``[G]``.
    """

    nats: Tensor
    factor: Tensor
    columns: Tensor
    branches: Tensor


class _GroupDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, groups: tuple[Groups, ...], divergence: Divergence) -> Tensor:
        loss = log_probs.new_zeros(len(log_probs))
        groups = tuple(
            replace(part, column_mass=part.column_mass.to(log_probs), branch_mass=part.branch_mass.to(log_probs))
            for part in groups
        )
        saved: list[Tensor] = []
        for part in groups:
            probs = _select(log_probs, part.row).exp()  # [R, V]
            scored = _forward(part, probs) if divergence == "forward" else _normalized(part, probs, _FORMS[divergence])
            loss[part.row] = scored.nats
            saved += [probs, scored.columns, scored.branches, scored.factor]
        ctx.groups = groups
        ctx.shape = log_probs.shape
        ctx.save_for_backward(*saved)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        saved = ctx.saved_tensors
        parts = [saved[place : place + 4] for place in range(0, len(saved), 4)]
        results = []
        for part, (probs, columns, branches, factor) in zip(ctx.groups, parts, strict=True):
            if part.sums is None:
                slope = columns.clone()
            else:
                none = columns.new_zeros(len(columns), 1)
                slope = torch.cat((columns, none), dim=1).index_select(1, part.sums.column)  # [R, V]
            slope.view(-1)[part.member] = branches[part.member_branch]
            if part.others is not None:
                # Their columns have no mass, and no slope.
                slope.index_add_(0, part.others_position, part.others * branches[part.of_others, None])
            results.append(slope.mul_(probs).mul_((grad[part.row] * factor)[:, None]))
        whole = [result for result in results if len(result) == ctx.shape[0]]
        if whole:
            return whole[0], None, None
        log_prob_grad = grad.new_zeros(ctx.shape)
        for part, result in zip(ctx.groups, results, strict=True):
            log_prob_grad.index_copy_(0, part.row, result)
        return log_prob_grad, None, None


def _forward(part: Groups, probs: Tensor) -> _Scored:
    """Scores KL(Q || P): its gradient by P needs no normalized P, and groups without mass need no care."""
    smallest = smallest_prob(probs.dtype)
    ((column_ratio, branch_ratio),) = part.compare(_ratio, _student_masses(part, probs), part.mass)
    nats = (part.column_mass * column_ratio.clamp_min(smallest).log()).sum(-1)
    total = part.column_mass.sum(-1)
    nats.index_add_(0, part.branch_position, part.branch_mass * branch_ratio.clamp_min(smallest).log())
    total.index_add_(0, part.branch_position, part.branch_mass)
    scale = 1 / total.clamp_min(smallest)
    nats = torch.where(total <= smallest, 0.0, nats * scale - total.clamp_min(smallest).log())
    return _Scored(nats, -torch.where(total <= smallest, 0.0, scale), column_ratio, branch_ratio)


def _normalized(part: Groups, probs: Tensor, form: _Form) -> _Scored:
    """Scores D(Q, P~) - log M; ``form`` gives h, and r or nothing, so that D = sum P~ h + sum Q r, and dD/dP~ is h plus
    a constant.
    """
    smallest = smallest_prob(probs.dtype)
    no_column, no_branch = part.column_mass == 0, part.branch_mass == 0
    columns, branches = _student_masses(part, probs)
    columns = columns.masked_fill(no_column, 0.0)  # it may be `probs`
    branches.masked_fill_(no_branch, 0.0)
    total = part.add_up(part.mass)
    mass = part.add_up((columns, branches)).clamp_min(smallest)  # M
    scale, teacher_scale = 1 / mass, 1 / total.clamp_min(smallest)
    columns.mul_(scale[:, None])
    branches.mul_(scale[part.branch_position])
    teacher = part.column_mass * teacher_scale[:, None], part.branch_mass * teacher_scale[part.branch_position]
    (of_columns, of_branches), *rest = part.compare(form, (columns, branches), teacher)
    mean = part.add_up((columns.mul_(of_columns), branches.mul_(of_branches)))
    nats = mean - mass.log()
    for of_teacher in rest:
        nats += part.add_up((of_teacher[0].mul_(teacher[0]), of_teacher[1].mul_(teacher[1])))
    of_columns.sub_((mean + 1)[:, None]).masked_fill_(no_column, 0.0)
    of_branches.sub_((mean + 1)[part.branch_position]).masked_fill_(no_branch, 0.0)
    nats, scale = (torch.where(total <= smallest, 0.0, values) for values in (nats, scale))
    return _Scored(nats, scale, of_columns, of_branches)


def _student_masses(part: Groups, probs: Tensor) -> GroupValues:
    """``[R, C], [G]``: P of each group."""
    of_members = probs.view(-1)[part.member]
    branches = torch.zeros_like(part.branch_mass).index_add_(0, part.member_branch, of_members)
    if part.others is not None:
        of_others = probs.index_select(0, part.others_position).masked_fill_(~part.others, 0.0)
        branches[part.of_others] = of_others.sum(-1)
    if part.sums is None:
        return probs, branches
    probs.view(-1)[part.member] = 0.0  # in no column
    columns = part.sums(probs)
    probs.view(-1)[part.member] = of_members
    return columns, branches


def _ratio(student: Tensor, teacher: Tensor) -> tuple[Tensor]:
    return (teacher / student.clamp_min(smallest_prob(student.dtype)),)


def _reverse(student: Tensor, teacher: Tensor) -> tuple[Tensor]:
    return (_log_ratio(student, teacher),)


def _jensen_shannon(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    middle = (student + teacher).mul_(0.5)
    rest = _log_ratio(teacher, middle).mul_(0.5)
    return _log_ratio(student, middle).mul_(0.5), rest


_FORMS: dict[Divergence, _Form] = {"reverse": _reverse, "jensen_shannon": _jensen_shannon}


def _log_ratio(above: Tensor, below: Tensor) -> Tensor:
    smallest = smallest_prob(above.dtype)
    return above.clamp_min(smallest).div_(below.clamp_min(smallest)).log_()


def _select(rows: Tensor, index: Tensor) -> Tensor:
    """The rows of an increasing index; all of them where it has as many."""
    return rows if len(index) == len(rows) else rows.index_select(0, index)
