"""Cuts into few segments: used for windows of a text and for blocks of rows alike."""

from __future__ import annotations

from bisect import bisect_left
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


def even_segments(bounds: NDArray[np.int64], limit: int) -> list[tuple[int, int]]:
    """As few segments as :func:`greedy_segments` finds, but of about the same size: the last one is no remainder.

    Args:
        limit: How far a segment may reach in each way. The smallest lower limit that needs no more segments is taken.
    """

    def cut(lower: int) -> list[tuple[int, int]]:
        return greedy_segments(bounds, [lower] * bounds.shape[1])

    fewest = len(cut(limit))
    return cut(bisect_left(range(limit), True, lo=1, key=lambda lower: len(cut(lower)) <= fewest))
