"""Greedy cuts: used for windows of a text and for blocks of rows alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def greedy_segments(bounds: NDArray[np.int64], limits: Sequence[int]) -> list[tuple[int, int]]:
    """Joins neighbouring pieces into the longest segments that respect every limit.

    Args:
        bounds: ``[K + 1, D]``, the positions at which K pieces start and end, counted in D ways (tokens of each
            side, say); every column is non-decreasing.
        limits: ``[D]``, how far a segment may reach in each way.

    Returns:
        (first, last) rows of ``bounds`` for each segment, in order and without gaps. A piece that is longer than a
        limit by itself stands alone.
    """
    segments: list[tuple[int, int]] = []
    start, last = 0, len(bounds) - 1
    while start < last:
        reach = (
            int(np.searchsorted(bounds[:, column], bounds[start, column] + limit, side="right")) - 1
            for column, limit in enumerate(limits)
        )
        end = max(start + 1, min(reach))
        segments.append((start, end))
        start = end
    return segments
