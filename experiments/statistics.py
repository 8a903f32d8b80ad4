"""Means over seeds, and differences paired by seed, with 95% t-intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_LOWER_IS_BETTER = ("bits_per_byte", "ce", "first_digit", "loss")  # last parts of tags
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean of ``n`` values; ``half`` is half the length of its 95% interval, None for a single value."""

    mean: float
    half: float | None
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its ends, or None for a single value."""
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)

    @property
    def side(self) -> int:
        """1 where the whole interval is above 0, -1 where it is below, 0 where it holds 0 or is not known."""
        if self.half is None or not abs(self.mean) > self.half:  # which is so for what is no number, too
            return 0
        return 1 if self.mean > 0 else -1


def estimate(values: Sequence[float]) -> Estimate:
    r"""Mean and t-interval, :math:`\bar x \pm t_{0.975, n-1} s / \sqrt n`.

    Raises:
        ValueError: If there is no value.
    """
    if not values:
        raise ValueError("an estimate needs at least 1 value, got 0; ask for runs that are finished")
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Estimate(mean, None, n)
    point = float(stats.t.ppf((1 + _CONFIDENCE) / 2, df=n - 1))
    return Estimate(mean, point * float(stats.sem(values)), n)


def higher_is_better(tag: str) -> bool:
    """Whether a metric is better where it is higher: all but losses and bits per byte."""
    return tag.rpartition("/")[2] not in _LOWER_IS_BETTER


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """The estimate of ``first - second`` over the seeds that both have, or None where they share none.

    Runs of one seed share their data, their errors and their first weights, so that their difference varies less than
    either.
    """
    seeds = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in seeds]) if seeds else None
