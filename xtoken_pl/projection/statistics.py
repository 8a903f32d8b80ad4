"""How undecided the rows of W are, and how far they have moved while W was learned."""

from __future__ import annotations

import torch
from torch import Tensor

# M rows, K places of a row


def row_entropy(weights: Tensor) -> Tensor:
    r"""Entropy of rows, :math:`-\sum_t w_t \log_2 w_t`: 0 for one teacher token, at most :math:`\log_2 K`.

    Args:
        weights: Rows that sum to 1, or to 0.

    Shape:
        weights: ``[M, K]``; returns ``[M]``, bits.
    """
    return -torch.special.xlogy(weights, weights).sum(dim=1) / torch.log(weights.new_tensor(2.0))


def row_distance(weights: Tensor, others: Tensor) -> Tensor:
    r"""Total variation distance of rows, :math:`\frac12 \sum_t |w_t - w'_t|`: 0 where equal, 1 where disjoint.

    Shape:
        weights, others: ``[M, K]``, rows that sum to 1, of the same tokens; returns ``[M]``.
    """
    return (weights - others).abs().sum(dim=1) / 2
