"""The k highest columns of each row, found faster on a CPU than by a partial sort of whole rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# S rows, V columns

#: Columns that are looked at, at least, to guess how high the k-th highest value is.
_SAMPLE = 4096
#: ``torch.topk`` shares the rows among threads, and this search does not: with more of them it is no faster.
_MOST_THREADS = 3
#: Standard deviations of the number of high values in a sample: one row in about 700 is guessed too high.
_MARGIN = 3.0


@torch.no_grad()
def top_columns(scores: Tensor, k: int) -> Tensor:
    """Finds the columns of the k highest values of each row: those that ``torch.topk`` finds, in any order.

    On a CPU, ``torch.topk`` partially sorts whole rows, with their places, which takes longer than all else that a loss
    does with them. Here a sample of each row's columns gives a value that about 1.2 k columns reach, and only these are
    searched. That they are the right ones is checked for every row: a row of which fewer than k columns reach the
    value, or in which other columns are as high as the k-th, is left to ``torch.topk``, so that ties are its choice.

    Args:
        scores: Values, NaN in no row. -inf is allowed.
        k: Number of columns, at most V.

    Shape:
        scores: ``[S, V]``; returns ``[S, k]``, int64.
    """
    num_columns = scores.shape[1]
    if scores.device.type != "cpu" or scores.dtype == torch.bfloat16 or not _pays(num_columns, k):
        return scores.topk(k, dim=-1, sorted=False).indices
    step = num_columns // _SAMPLE
    expected = k / step
    rank = int(expected + _MARGIN * expected**0.5) + 1
    values = scores.detach().numpy()
    lowest = np.partition(values[:, ::step], -rank, axis=-1)[:, -rank]
    is_high = values >= lowest[:, None]
    places = torch.empty(len(scores), k, dtype=torch.int64)
    others = []
    for row, (row_values, is_candidate) in enumerate(zip(values, is_high, strict=True)):
        candidates = np.flatnonzero(is_candidate)
        found = _highest(candidates, row_values.take(candidates), k)
        if found is None:
            others.append(row)
        else:
            places[row] = torch.from_numpy(found)
    if others:
        places[others] = scores[others].topk(k, dim=-1, sorted=False).indices
    return places


def _pays(num_columns: int, k: int) -> bool:
    """Whether a sample is much smaller than a row; torch finds a few columns by a heap, which is fast as well."""
    if torch.get_num_threads() > _MOST_THREADS:
        return False
    return num_columns >= 4 * _SAMPLE and num_columns < 64 * k and k <= num_columns // 4


def _highest(candidates: np.ndarray, values: np.ndarray, k: int) -> np.ndarray | None:
    """The k candidates of the highest values; None if there are fewer, or if it is a choice between equal ones."""
    surplus = len(candidates) - k
    if surplus < 0:
        return None
    found = np.flatnonzero(values >= np.partition(values, surplus)[surplus])
    return candidates.take(found) if len(found) == k else None
