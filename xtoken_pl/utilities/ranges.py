"""Vectorized operations on many ranges of integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def expand(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """Lists the integers of all ranges ``low[i], ..., high[i] - 1``, and the index i of the range of each."""
    sizes = high - low
    index = np.repeat(np.arange(len(low)), sizes)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + low[index]
