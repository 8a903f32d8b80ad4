"""Product of rows with a sparse matrix of fixed structure: gathers for most entries, index-adds for the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# N rows, I/J rows and columns of the matrix, E entries of the matrix


class SparseProduct(nn.Module):
    r"""``out[..., target[e]] += weights[e] * rows[..., source[e]]`` for every entry e of a sparse matrix.

    Most columns and most rows of W have a single entry: the first entry of each column is gathered, and only the others
    are added one by one. The gradient is the same product with rows and columns exchanged.

    Args:
        source: ``[E]`` row of each entry, below ``num_sources``.
        target: ``[E]`` column of each entry, below ``num_targets``.
        num_sources: Number of rows, I.
        num_targets: Number of columns, J.
        weights: ``[E]`` default weights.

    Shape:
        rows: ``[..., I]``; weights: ``[E]``; learned: ``[L]``, the entries whose weights get a gradient; returns
        ``[..., J]``. It is differentiable in the rows, and in weights that are passed with them.
    """

    def __init__(self, source: Tensor, target: Tensor, num_sources: int, num_targets: int, weights: Tensor) -> None:
        super().__init__()
        self.forward_plan = _GatherPlan(source, target, num_targets, weights)
        self.backward_plan = _GatherPlan(target, source, num_sources, weights)

    def forward(self, rows: Tensor, weights: Tensor | None = None, learned: Tensor | None = None) -> Tensor:
        """Multiplies; ``weights=None`` uses the default ones, and with ``learned=None`` all entries get a gradient."""
        flat = rows.reshape(-1, rows.shape[-1])
        weights = None if weights is None else weights.to(rows.dtype)
        out: Tensor = _SparseProduct.apply(flat, weights, learned, self.forward_plan, self.backward_plan)
        return out.reshape(*rows.shape[:-1], out.shape[-1])


class _GatherPlan(nn.Module):
    """Product in one direction: one entry of every output column is gathered, the others are added."""

    source: Tensor  # [E]
    target: Tensor  # [E]
    first: Tensor  # [J], entry that is gathered, E for none
    first_source: Tensor  # [J]
    rest: Tensor  # [E'], entries that are added
    rest_source: Tensor  # [E']
    rest_target: Tensor  # [E']
    first_weights: Tensor  # [J]
    rest_weights: Tensor  # [E']

    def __init__(self, source: Tensor, target: Tensor, num_targets: int, weights: Tensor) -> None:
        super().__init__()
        by_target = target.argsort(stable=True)
        column = target[by_target]
        is_first = torch.ones_like(column, dtype=torch.bool)
        is_first[1:] = column[1:] != column[:-1]
        first = torch.full((num_targets,), len(source)).index_copy(0, column[is_first], by_target[is_first])
        rest = by_target[~is_first]
        # A column without entries gathers an arbitrary value, times zero.
        first_source = torch.cat((source, source.new_zeros(1)))[first]
        entries = {"source": source, "target": target}
        gathered = {"first": first, "first_source": first_source}
        added = {"rest": rest, "rest_source": source[rest], "rest_target": target[rest]}
        for name, tensor in (entries | gathered | added).items():
            self.register_buffer(name, tensor, persistent=False)
        # The default weights are arranged once, since this takes as long as the product of a few rows.
        for name, tensor in zip(("first_weights", "rest_weights"), self._arrange(weights.detach()), strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def _arrange(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Splits the weights ``[E]`` into those of gathered and of added entries."""
        return torch.cat((weights, weights.new_zeros(1)))[self.first], weights[self.rest]

    def forward(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        """Multiplies, ``[N, I], [E] -> [N, J]``; ``weights=None`` uses the default ones."""
        own = self.first_weights, self.rest_weights
        first_weights, rest_weights = own if weights is None else self._arrange(weights)
        out = rows.index_select(1, self.first_source).mul_(first_weights.to(rows.dtype))
        if len(self.rest):
            added = rows.index_select(1, self.rest_source).mul_(rest_weights.to(rows.dtype))
            out.index_add_(1, self.rest_target, added)
        return out


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weights: Tensor | None,
        learned: Tensor | None,
        plan: _GatherPlan,
        transposed: _GatherPlan,
    ) -> Tensor:
        ctx.plans = plan, transposed
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weights, learned)
        return plan(rows, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        rows, weights, learned = ctx.saved_tensors
        plan, transposed = ctx.plans
        to_rows = _SparseProduct.apply(grad, weights, learned, transposed, plan) if ctx.needs_input_grad[0] else None
        to_weights = None
        if rows is not None:
            source, target = plan.source, plan.target
            if learned is not None:
                source, target = source.index_select(0, learned), target.index_select(0, learned)
            to_weights = (grad.index_select(1, target) * rows.index_select(1, source)).sum(0)
            if learned is not None:
                to_weights = to_weights.new_zeros(len(plan.source)).index_copy(0, learned, to_weights)
        return to_rows, to_weights, None, None, None
