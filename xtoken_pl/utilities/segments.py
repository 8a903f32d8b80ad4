"""Division into few segments, used for the windows of a text and for blocks of rows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def greedy_segments(bounds: NDArray[np.int64], limits: Sequence[int]) -> list[tuple[int, int]]:
    """Joins neighbouring pieces into the longest segments that respect every limit.

    Args:
        bounds: ``[K + 1, D]`` positions at which K pieces start and end, counted in D units (tokens of each side,
            say); every column is non-decreasing.
        limits: ``[D]`` largest size of a segment in each unit.

    Returns:
        (first, last) rows of ``bounds`` for each segment, in order and without gaps. A single piece that exceeds a
        limit is a segment of its own.
    """
    segments: list[tuple[int, int]] = []
    start, last = 0, len(bounds) - 1
    units = list(np.ascontiguousarray(bounds.T))  # searchsorted would copy other columns in every call
    while start < last:
        reach = (
            int(np.searchsorted(unit, unit[start] + limit, side="right")) - 1
            for unit, limit in zip(units, limits, strict=True)
        )
        end = max(start + 1, min(reach))
        segments.append((start, end))
        start = end
    return segments


def even_segments(bounds: NDArray[np.int64], limit: int) -> list[tuple[int, int]]:
    """Joins pieces into as few segments as :func:`greedy_segments`, but of similar sizes, without a small remainder.

    Args:
        bounds: ``[K + 1, D]``, as in :func:`greedy_segments`.
        limit: Largest size of a segment in every unit; replaced by the smallest limit that needs no more segments.
    """

    def cut(lower: int) -> list[tuple[int, int]]:
        return greedy_segments(bounds, [lower] * bounds.shape[1])

    fewest = len(cut(limit))
    return cut(bisect_left(range(limit), True, lo=1, key=lambda lower: len(cut(lower)) <= fewest))
