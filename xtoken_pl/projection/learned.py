"""W with weights that are learned together with the student."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from xtoken_pl.projection.projection import Projection

# V_s student's vocabulary size, K places of a row (4), M rows with several teacher tokens, E non-zero entries of W


class LearnedProjection(nn.Module):
    r"""Weights of W by a softmax over each row, on the support that W has at the start.

    .. math:: W[s, t] = \frac{e^{z_{s,t}}}{\sum_{t' \in \mathrm{supp}(s)} e^{z_{s,t'}}}

    Rows stay stochastic. They start at the weights of ``projection``; exact rows and rows of one teacher token have
    nothing to learn, and zero rows stay zero.

    Args:
        projection: W at the start.

    Raises:
        ValueError: If no row has several teacher tokens.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, learned W; the softmax on a fixed support is ours.
    """

    rows: Tensor  # [M], student ids
    is_free: Tensor  # [M, K], places of the support
    base: Tensor  # [V_s, K], W at the start
    entry_row: Tensor  # [E]
    entry_place: Tensor  # [E]

    def __init__(self, projection: Projection) -> None:
        super().__init__()
        self._start = projection
        support = projection.weights > 0
        rows = torch.nonzero(support.sum(dim=1) > 1).squeeze(1)
        if len(rows) == 0:
            raise ValueError(
                "a projection that is learned must have rows of several teacher tokens, got none: every student token "
                "is one teacher token, or none. Leave learn_projection out"
            )
        is_free = support[rows]
        entry_row, entry_place = torch.nonzero(projection.weights, as_tuple=True)
        buffers = {"rows": rows, "is_free": is_free, "base": projection.weights}
        for name, tensor in (buffers | {"entry_row": entry_row, "entry_place": entry_place}).items():
            self.register_buffer(name, tensor, persistent=False)
        self.logits = nn.Parameter(projection.weights[rows].log().masked_fill(~is_free, 0.0))  # [M, K]

    def weights(self) -> Tensor:
        """``[V_s, K]``: the weights as they stand, with a gradient."""
        learned = self.logits.masked_fill(~self.is_free, -torch.inf).softmax(dim=1)
        return self.base.index_copy(0, self.rows, learned)

    def forward(self) -> Tensor:
        """``[E]``: the weights of the entries, in the order of :meth:`Projection.entries`."""
        return self.weights()[self.entry_row, self.entry_place]

    @torch.no_grad()
    def to_projection(self) -> Projection:
        """W as it stands, to store and to start from."""
        return replace(
            self._start, weights=self.weights().float().cpu(), parameters={**self._start.parameters, "learned": 1.0}
        )
