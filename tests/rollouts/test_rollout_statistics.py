"""Counts over rollouts equal a slow computation, and those of several steps add up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtoken_pl.batch import Prompt
from xtoken_pl.rollouts import Rollout
from xtoken_pl.rollouts.statistics import RolloutCounts, count_repeated


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 5))
def test_repeated_grams_are_those_that_begin_earlier_in_the_text(ids: list[int], size: int) -> None:
    grams = [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)]
    again = sum(any(grams[earlier] == gram for earlier in range(place)) for place, gram in enumerate(grams))
    assert count_repeated(ids, size) == (again, len(grams))


PROMPT, CUT = Prompt({"": [1]}, is_chat=False), Prompt({"": [1]}, is_chat=True, is_cut=True)
STEP = [
    (PROMPT, Rollout((7, 7, 7, 7, 7, 7), b"ffffff", "length")),  # 3 grams, 2 of them again
    (CUT, Rollout((5, 6, 7, 8, 2), b"stop", "stop")),  # the stop token is in no gram: 1
    (PROMPT, Rollout((2,), b"", "stop")),
    (PROMPT, Rollout((3, 3), b"", "length")),  # special tokens only
]


def test_means_are_over_all_rollouts() -> None:
    counts = RolloutCounts.from_rollouts(*zip(*STEP, strict=True))
    assert counts.means == {"length": 14 / 4, "ended": 2 / 4, "repeated": 2 / 4, "cut": 1 / 4}
    assert (counts.num_empty, counts.log_lengths) == (2, math.log(5))


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    parts = [RolloutCounts.from_rollouts([prompt], [rollout]) for prompt, rollout in STEP]
    assert sum(parts, RolloutCounts()) == RolloutCounts.from_rollouts(*zip(*STEP, strict=True))


def test_means_without_rollouts_are_nan() -> None:
    assert all(math.isnan(value) for value in RolloutCounts().means.values())


def test_texts_shorter_than_a_gram_do_not_repeat() -> None:
    assert count_repeated([1, 1, 1]) == (0, 0)
    short = RolloutCounts.from_rollouts([PROMPT], [Rollout((1, 1), b"aa", "length")]).means
    assert short["length"] == pytest.approx(2)
    assert math.isnan(short["repeated"])
