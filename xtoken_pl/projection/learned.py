"""The projection W with weights that are learned together with the student."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from xtoken_pl.projection.projection import Projection
from xtoken_pl.utilities.errors import UserError

_LEAST_WEIGHT = 1e-12

# V_s student's vocabulary size, K entries per row (4), E non-zero entries of W, M rows with several teacher tokens,
# L their entries, whose weights are learned


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
    initial: Tensor  # [E], initial weights
    entries: Tensor  # [L], places in [E] of the weights that are learned
    used: Tensor  # [L], places in [M * K] of their logits

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
        _, _, weights = projection.entries()
        places = torch.full_like(projection.indices, -1).masked_scatter(is_used, torch.arange(len(weights)))[rows]
        used = torch.nonzero(places.flatten() >= 0).squeeze(1)
        buffers = {"base": projection.weights, "initial": weights, "entries": places.flatten()[used], "used": used}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)
        # Saved in checkpoints together with the logits, to identify their entries.
        self.register_buffer("rows", rows)
        self.register_buffer("support", projection.indices[rows].masked_fill(~is_used[rows], -1))
        self.logits = nn.Parameter(projection.weights[rows].log().masked_fill(~is_used[rows], 0.0))  # [M, K]

    def weights(self) -> Tensor:
        """Current weights, ``[V_s, K]``, differentiable."""
        return self.base.index_copy(0, self.rows, self._learned_rows())

    def forward(self) -> Tensor:
        """Returns the current weights of the entries, ``[E]``, in the order of :meth:`Projection.entries`."""
        learned = self._learned_rows().flatten().index_select(0, self.used)
        return self.initial.to(learned.dtype).index_copy(0, self.entries, learned)

    def _learned_rows(self) -> Tensor:
        """``[M, K]``, 0 outside the support."""
        logits = self.logits.masked_fill(self.support < 0, -torch.inf)
        return logits.T.softmax(dim=0).T  # on a CPU six times as fast as over the short dimension

    @torch.no_grad()
    def to_projection(self) -> Projection:
        """Exports the current W, to save or to resume from; a weight that underflows stays in the support."""
        weights = self.weights().float().cpu()
        weights = weights.clamp_min(_LEAST_WEIGHT).masked_fill(self._start.weights == 0, 0.0)
        return replace(self._start, weights=weights, parameters={**self._start.parameters, "learned": 1.0})
