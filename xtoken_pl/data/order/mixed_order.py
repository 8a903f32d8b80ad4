"""Order in which the windows of a weighted mixture are read, as a function of the seed and the epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.utilities.errors import UserError

# N windows of an epoch, n_i windows of source i, w_i its share


@dataclass(frozen=True)
class MixedOrder:
    r"""Order of stored windows of several sources, of which each gives its share of every epoch.

    An epoch has :math:`N = \lfloor \min_i n_i / w_i \rfloor` windows: as many as can be read in these shares until the
    first source is exhausted. Source i gives :math:`N w_i` of them, rounded by largest remainders.
    Every source is read in passes, each in a shuffled order of its own, and continues in the next epoch where it
    stopped. The order of the sources within an epoch is shuffled, too.

    The interleaving of `datasets` is not used: it needs the same columns in all sources, gives the same order in every
    epoch, and draws sources at random, so that their shares are not exact.

    Attributes:
        names: Names of the sources, for messages.
        sizes: Number of windows of each source.
        weights: Weight > 0 of each source.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        """Number of windows of an epoch, N."""
        return min(int(size / share) for size, share in zip(self.sizes, exact_shares(self.weights), strict=True))

    @cached_property
    def counts(self) -> list[int]:
        """Number of windows that each source gives to an epoch.

        Raises:
            UserError: If a source gives none.
        """
        exact = [len(self) * share for share in exact_shares(self.weights)]
        counts = [int(part) for part in exact]
        by_remainder = sorted(range(len(exact)), key=lambda place: counts[place] - exact[place])
        for place in by_remainder[: len(self) - sum(counts)]:
            counts[place] += 1
        if 0 in counts:
            name, weight = self.names[counts.index(0)], self.weights[counts.index(0)]
            raise UserError(
                f"every source of data.train must give a window to an epoch, but an epoch has {len(self):,} windows, "
                f"and {name!r} has a share of {float(exact_shares(self.weights)[counts.index(0)]):.2g} (weight "
                f"{weight:g}); raise its weight, set it to 0, or give the smaller sources more texts"
            )
        return counts

    def __call__(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Returns the windows of an epoch ``[N]``, as places in all sources one after the other."""
        order = np.repeat(np.arange(len(self.sizes)), self.counts)
        order = np.random.default_rng((seed, epoch)).permutation(order)
        windows = np.empty(len(order), dtype=np.int64)
        first = 0
        for source, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            windows[order == source] = first + _section(size, epoch * count, count, seed, source)
            first += size
        return windows

    def __str__(self) -> str:
        each = zip(self.names, self.counts, self.sizes, strict=True)
        parts = ", ".join(f"{count:,} of the {size:,} of {name}" for name, count, size in each)
        return f"an epoch of the mixture has {len(self):,} windows: {parts}"


def exact_shares(weights: Sequence[float]) -> list[Fraction]:
    """Normalizes weights to shares, exactly: 0.1 is a tenth."""
    exact = [Fraction(str(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]


def _section(size: int, begin: int, count: int, seed: int, source: int) -> NDArray[np.int64]:
    """Windows ``begin`` to ``begin + count`` of a source that is read again and again, each time in another order."""
    first, last = begin // size, (begin + count - 1) // size
    # Seeds that differ in zeros at their end alone are the same: none of these is that of the order of the sources.
    seeds = [(seed, source + 1, number + 1) for number in range(first, last + 1)]
    passes = [np.random.default_rng(own).permutation(size) for own in seeds]
    return np.concatenate(passes)[begin - first * size :][:count]
