"""Pieces are cut into segments that respect a limit on every side."""

from __future__ import annotations

import numpy as np
import pytest

from xtoken_pl.utilities.segments import even_segments, greedy_segments


def test_greedy_segments_respect_every_limit_and_skip_nothing() -> None:
    bounds = np.array([[0, 0], [3, 1], [4, 9], [6, 10], [20, 11], [21, 12]])
    segments = greedy_segments(bounds, [6, 9])
    assert segments == [(0, 2), (2, 3), (3, 4), (4, 5)]  # the fourth piece is longer than the limit, and stands alone


@pytest.mark.parametrize(("num_pieces", "limit", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [3, 3, 3]), (5, 4, [3, 2])])
def test_even_segments_are_as_few_and_as_small_as_can_be(num_pieces: int, limit: int, sizes: list[int]) -> None:
    bounds = np.arange(num_pieces + 1)[:, None]
    assert [end - start for start, end in even_segments(bounds, limit)] == sizes


def test_even_segments_respect_the_limit_of_every_side_and_skip_nothing() -> None:
    generator = np.random.default_rng(0)
    bounds = np.concatenate((np.zeros((1, 2), int), generator.integers(0, 4, (300, 2)).cumsum(axis=0)))
    for limit in (1, 3, 20, 100, 10_000):
        segments = even_segments(bounds, limit)
        assert len(segments) == len(greedy_segments(bounds, [limit, limit]))
        assert [0, *(end for _, end in segments)] == [*(start for start, _ in segments), 300]
        assert all((bounds[end] - bounds[start]).max() <= limit or end == start + 1 for start, end in segments)
    assert even_segments(bounds[:1], 5) == []
