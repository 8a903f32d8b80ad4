"""Many ranges of integers at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def expand(low: Ints, high: Ints) -> tuple[Ints, Ints]:
    """For every range its index, and low, low + 1, ... up to high, exclusive."""
    sizes = high - low
    index = np.repeat(np.arange(len(low)), sizes)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + low[index]
