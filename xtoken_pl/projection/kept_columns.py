"""Product of rows with a sparse matrix: some columns, other ones for each row, and the sum of the rest."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# N rows, I/J rows and columns of the matrix, k kept columns, E entries of the matrix, M mixed rows of the matrix


class KeptColumns:
    r"""Some columns of ``log_rows.exp() @ matrix``, other ones for each row, and the sum over all that are left out.

    .. math:: y_c = \sum_s e^{x_s} W_{s,c} \text{ for kept } c, \qquad y_{\text{others}} = \sum_s e^{x_s} r_s, \quad
              r_s = \sum_{c \text{ not kept}} W_{s,c}

    Nearly all rows of W have one entry, and nearly all columns have such a row: its *lone* entry, which is gathered.
    All other rows are *mixed*; of these only the entries of kept columns are read. The work is proportional to k and to
    I, not to J or E, and no sum is the difference of two nearly equal ones. For a CPU: the number of entries that are
    read depends on the kept columns, for which a GPU would have to wait. It is therefore no module, and stays there.

    Args:
        source: ``[E]`` row of each entry, below ``num_sources``.
        target: ``[E]`` column of each entry; every column below ``num_targets`` has one.
        num_sources: Number of rows, I.
        num_targets: Number of columns, J.
        weights: ``[E]`` default weights.

    Shape:
        log_rows: ``[N, I]``; kept: ``[N, k]`` columns, each at most once in a row; weights: ``[E]``, of which those of
        mixed rows are read, and get a gradient; returns ``[N, k + 1]``, the sum of the others last.
    """

    def __init__(self, source: Tensor, target: Tensor, num_sources: int, num_targets: int, weights: Tensor) -> None:
        weights = weights.detach()
        by_target = target.argsort(stable=True)
        source, target, weights = source[by_target], target[by_target], weights[by_target]
        alone = source.bincount(minlength=num_sources)[source] == 1
        # Of several such rows of a column, the first one is gathered.
        candidates = alone.nonzero().squeeze(1)
        is_first = torch.ones_like(candidates, dtype=torch.bool)
        is_first[1:] = target[candidates[1:]] != target[candidates[:-1]]
        lone = candidates[is_first]
        is_mixed = torch.ones_like(alone).index_fill_(0, lone, value=False)
        #: ``[M]`` mixed rows.
        self.mixed: Tensor
        #: ``[E']`` the mixed rows' entries, sorted by column: place among all entries, place of the row in ``mixed``,
        #: default weight.
        self.entry = by_target[is_mixed]
        self.entry_row: Tensor
        self.mixed, self.entry_row = source[is_mixed].unique(return_inverse=True)
        self.entry_weights = weights[is_mixed]
        #: ``[M]`` sum of each mixed row's default weights, in double precision.
        self.mixed_mass = self._sum_by_row(self.entry_weights)
        #: ``[J]`` number of such entries in a column, and the first of them.
        self.count = target[is_mixed].bincount(minlength=num_targets)
        self.first = self.count.cumsum(0) - self.count
        anywhere = int(self.mixed[0]) if len(self.mixed) else 0
        #: ``[J]`` row of a column's lone entry, a mixed row where there is none.
        self.lone_source = torch.full((num_targets,), anywhere).index_copy(0, target[lone], source[lone])
        #: ``[J]`` weight of a column's lone entry, 0 where there is none.
        self.lone_weights = weights.new_zeros(num_targets).index_copy(0, target[lone], weights[lone])
        #: ``[I]`` the same by row.
        self.lone_row_weights = weights.new_zeros(num_sources).index_copy(0, source[lone], weights[lone])

    def __call__(self, log_rows: Tensor, kept: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sums by column; ``weights=None`` uses the default ones."""
        if weights is None:
            return cast(Tensor, _KeptColumns.apply(log_rows, kept, self.entry_weights, self.mixed_mass, self))
        weights = weights.index_select(0, self.entry)
        return cast(Tensor, _KeptColumns.apply(log_rows, kept, weights, self._sum_by_row(weights.detach()), self))

    def _sum_by_row(self, weights: Tensor) -> Tensor:
        """``[E'] -> [M]``: the sum of each mixed row's weights, in double precision."""
        double = weights.double()
        return double.new_zeros(len(self.mixed)).index_add(0, self.entry_row, double)

    def entries(self, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lists the entries of mixed rows in kept columns, ``X`` of them.

        Returns:
            ``[X]`` places in ``kept``, in ``[N, M]``, both flattened, and in ``[E']``.
        """
        num_kept, kept = kept.shape[1], kept.flatten()
        count = self.count.index_select(0, kept)
        place = count.nonzero().squeeze(1)
        count, first = count.index_select(0, place), self.first.index_select(0, kept.index_select(0, place))
        # The entries of a column follow one another.
        shift, first_of_row = first - (count.cumsum(0) - count), place // num_kept * len(self.mixed)
        each = torch.repeat_interleave(count)
        entry = shift.index_select(0, each) + torch.arange(len(each), device=kept.device)
        of_row = first_of_row.index_select(0, each) + self.entry_row.index_select(0, entry)
        return place.index_select(0, each), of_row, entry


class _KeptColumns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_rows: Tensor, kept: Tensor, weights: Tensor, mixed_mass: Tensor, matrix: KeptColumns
    ) -> Tensor:
        source = matrix.lone_source.index_select(0, kept.flatten()).view_as(kept)
        lone_weights = matrix.lone_weights.index_select(0, kept.flatten()).view_as(kept).to(log_rows.dtype)
        place, of_row, entry = matrix.entries(kept)
        weights = weights.index_select(0, entry)
        # On a CPU twice as fast as exp; exact but for the rounding that log_rows have, too.
        rows = (log_rows * math.log2(math.e)).exp2_()
        mixed = rows.index_select(1, matrix.mixed)  # [N, M]
        lone = rows.gather(1, source).mul_(lone_weights)  # [N, k]
        of_mixed = mixed.view(-1).index_select(0, of_row).mul_(weights.to(rows.dtype))
        columns = lone.view(-1).index_add(0, place, of_mixed)
        # In double precision: a row all whose columns are kept leaves exactly nothing to the others.
        left = mixed_mass.expand_as(mixed).clone()
        left.view(-1).index_add_(0, of_row, weights.double(), alpha=-1)
        left = left.to(rows.dtype)
        others = rows.mul_(matrix.lone_row_weights.to(rows.dtype)).scatter_(1, source, 0.0)  # [N, I]
        sum_of_others = others.sum(-1, keepdim=True) + (mixed * left).sum(-1, keepdim=True)
        ctx.matrix = matrix
        ctx.save_for_backward(others, lone, mixed, left, source, place, of_row, entry, weights)
        return torch.cat((columns.view_as(kept), sum_of_others), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None, None]:
        others, lone, mixed, left, source, place, of_row, entry, weights = ctx.saved_tensors
        of_columns, of_others = grad[:, :-1].contiguous(), grad[:, -1:]
        of_kept = of_columns.view(-1).index_select(0, place)  # [X]
        to_weights = None
        if ctx.needs_input_grad[2]:
            # As if all entries were among the others, and then what is different for the kept ones.
            to_weights = (of_others.T @ mixed).squeeze(0).index_select(0, ctx.matrix.entry_row)
            difference = of_kept - of_others.squeeze(1).index_select(0, place.div(lone.shape[1], rounding_mode="floor"))
            difference.mul_(mixed.view(-1).index_select(0, of_row))
            to_weights.index_add_(0, entry, difference)
            to_weights = to_weights.to(weights.dtype)
        result = (others * of_others).scatter_(1, source, lone * of_columns)
        of_mixed = of_others * left
        of_mixed.view(-1).index_add_(0, of_row, of_kept.mul_(weights.to(grad.dtype)))
        # Behind the scatter, which writes to one of these rows where a column has no lone entry.
        result.index_copy_(1, ctx.matrix.mixed, of_mixed.mul_(mixed))
        return result, None, to_weights, None, None
