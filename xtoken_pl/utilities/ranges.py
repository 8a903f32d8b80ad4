"""Vectorized operations on many ranges and pairs of integers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def expand(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """Lists the integers of all ranges ``low[i], ..., high[i] - 1``, and the index i of the range of each."""
    sizes = high - low
    index = np.repeat(np.arange(len(low)), sizes)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + low[index]


def not_among(first: Ints, second: Ints, others_first: Ints, others_second: Ints) -> Bools:
    """``[N]`` bool, True for the pairs of numbers >= 0 that are not among other pairs."""
    size = max(second.max(initial=0), others_second.max(initial=0)) + 1
    return np.isin(first * size + second, others_first * size + others_second, invert=True)


def expand_ranges(start: Tensor, length: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """For every range its index, and start, start + 1, ..., ``length`` numbers; ``total`` of all, known on the host."""
    index = torch.arange(len(start), device=start.device).repeat_interleave(length, output_size=total)
    offset = start - (length.cumsum(0) - length)
    return index, torch.arange(total, device=start.device) + offset[index]
