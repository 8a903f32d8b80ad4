"""The projection W with weights that are learned together with the student."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from xtoken_pl.projection.projection import Projection
from xtoken_pl.utilities.errors import UserError

_LEAST_WEIGHT = 1e-12

# V_s student's vocabulary size, K entries per row (4), M rows with several teacher tokens, E non-zero entries of W


class LearnedProjection(nn.Module):
    r"""Learned weights of W: a softmax over each row, on the support of the initial W.

    .. math:: W[s, t] = \frac{e^{z_{s,t}}}{\sum_{t' \in \mathrm{supp}(s)} e^{z_{s,t'}}}

    Rows stay stochastic. They start at the weights of ``projection``; rows with a single teacher token are fixed, and
    zero rows stay zero.

    Args:
        projection: Initial W.

    Raises:
        UserError: If no row has several teacher tokens.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, learned W; the softmax on a fixed support is ours.
    """

    rows: Tensor  # [M], student ids
    support: Tensor  # [M, K], teacher ids, -1 for entries that a row does not use
    base: Tensor  # [V_s, K], initial W
    entry_row: Tensor  # [E]
    entry_place: Tensor  # [E]

    def __init__(self, projection: Projection) -> None:
        super().__init__()
        self._start = projection
        is_used = projection.weights > 0
        rows = torch.nonzero(is_used.sum(dim=1) > 1).squeeze(1)
        if len(rows) == 0:
            raise UserError(
                "a learned projection must have rows of several teacher tokens, got none: every student token maps to "
                "at most one teacher token. Leave learn_projection out"
            )
        entry_row, entry_place = torch.nonzero(projection.weights, as_tuple=True)
        for name, tensor in (("base", projection.weights), ("entry_row", entry_row), ("entry_place", entry_place)):
            self.register_buffer(name, tensor, persistent=False)
        # Saved in checkpoints together with the logits, to identify their entries.
        self.register_buffer("rows", rows)
        self.register_buffer("support", projection.indices[rows].masked_fill(~is_used[rows], -1))
        self.logits = nn.Parameter(projection.weights[rows].log().masked_fill(~is_used[rows], 0.0))  # [M, K]

    def weights(self) -> Tensor:
        """Current weights, ``[V_s, K]``, differentiable."""
        learned = self.logits.masked_fill(self.support < 0, -torch.inf).softmax(dim=1)
        return self.base.index_copy(0, self.rows, learned)

    def forward(self) -> Tensor:
        """Returns the current weights of the entries, ``[E]``, in the order of :meth:`Projection.entries`."""
        return self.weights()[self.entry_row, self.entry_place]

    @torch.no_grad()
    def to_projection(self) -> Projection:
        """Exports the current W, to save or to resume from; a weight that underflows stays in the support."""
        weights = self.weights().float().cpu()
        weights = weights.clamp_min(_LEAST_WEIGHT).masked_fill(self._start.weights == 0, 0.0)
        return replace(self._start, weights=weights, parameters={**self._start.parameters, "learned": 1.0})
