"""Statistics of a learned W: the entropy of its rows, and their distance from the initial ones."""

from __future__ import annotations

import torch
from torch import Tensor

# M rows, K entries per row


def row_entropy(weights: Tensor) -> Tensor:
    r"""Entropy of rows, :math:`-\sum_t w_t \log_2 w_t`: 0 for one teacher token, at most :math:`\log_2 K`.

    Args:
        weights: Rows that each sum to 1 or 0.

    Shape:
        weights: ``[M, K]``; returns ``[M]``, bits.
    """
    return -torch.special.xlogy(weights, weights).sum(dim=1) / torch.log(weights.new_tensor(2.0))


def row_distance(weights: Tensor, others: Tensor) -> Tensor:
    r"""Total variation distance of rows, :math:`\frac12 \sum_t |w_t - w'_t|`: 0 if equal, 1 if disjoint.

    Shape:
        weights, others: ``[M, K]``, rows that sum to 1, over the same tokens; returns ``[M]``.
    """
    return (weights - others).abs().sum(dim=1) / 2
