"""An epoch of a mixture has exact shares, repeats nothing before it must, and depends on seed and epoch alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xtoken_pl.batch import NO_WINDOW
from xtoken_pl.data.order.mixed_order import MixedOrder
from xtoken_pl.data.order.mixed_stream import MixedStream, NamedStream
from xtoken_pl.data.order.sampler import GlobalBatchSampler, Position
from xtoken_pl.utilities.errors import UserError

MIXTURES = st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0.1, 0.3, 1, 2.5, 7])), min_size=1, max_size=4)


def order_of(mixture: list[tuple[int, float]]) -> MixedOrder:
    sizes, weights = zip(*mixture, strict=True)
    order = MixedOrder(tuple(map(str, range(len(sizes)))), sizes, weights)
    try:
        _ = order.counts
    except UserError:
        assume(False)
    return order


def by_source(order: MixedOrder, epochs: int, seed: int = 3) -> list[list[int]]:
    """Windows that each source gives in some epochs, in their order."""
    first = np.cumsum([0, *order.sizes])
    read = np.concatenate([order(seed, epoch) for epoch in range(epochs)])
    return [[int(window - low) for window in read if low <= window < high] for low, high in pairwise(first)]


@given(mixture=MIXTURES)
def test_shares_are_exact_to_one_window_and_no_source_is_needed_twice(mixture: list[tuple[int, float]]) -> None:
    order = order_of(mixture)
    total = sum(order.weights)
    for count, size, weight in zip(order.counts, order.sizes, order.weights, strict=True):
        assert abs(count - len(order) * weight / total) < 1
        assert count <= size
    assert sum(order.counts) == len(order) == len(order(0, 0))
    # One window more, and a source would have to be repeated within the epoch.
    assert any((len(order) + 1) * w / total > size - 1e-9 for size, w in zip(order.sizes, order.weights, strict=True))


@given(mixture=MIXTURES, epochs=st.integers(1, 6))
def test_a_source_is_read_to_its_end_before_a_window_comes_again(mixture: list[tuple[int, float]], epochs: int) -> None:
    order = order_of(mixture)
    for size, read in zip(order.sizes, by_source(order, epochs), strict=True):
        passes = [read[start : start + size] for start in range(0, len(read), size)]
        assert all(sorted(whole) == list(range(size)) for whole in passes[:-1])
        assert len(set(passes[-1])) == len(passes[-1])


def test_every_pass_epoch_and_seed_has_its_own_order() -> None:
    order = MixedOrder(("a", "b"), (40, 40), (1, 1))
    assert len(order) == 80
    first, second = (by_source(order, 2)[0][start : start + 40] for start in (0, 40))
    assert first != second
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    is_first = [order(0, epoch) < 40 for epoch in (0, 1)]
    assert (is_first[0] != is_first[1]).any()


def test_weights_are_decimals_not_binary_fractions() -> None:
    """0.1 + 0.2 is not 0.3 in floating point, and an epoch could be a window shorter."""
    assert MixedOrder(("a", "b", "c"), (100, 200, 700), (0.1, 0.2, 0.7)).counts == [100, 200, 700]


def test_a_source_without_a_window_is_refused() -> None:
    with pytest.raises(UserError, match=r"an epoch has 10 windows, and 'b' has a share of 0\.001.*raise its weight"):
        _ = MixedOrder(("a", "b"), (10, 10), (999, 1)).counts


# The sampler ----------------------------------------------------------------------------------------------------------


def batches(order: MixedOrder, batch_size: int, num_processes: int, done: int = 0) -> list[list[list[int]]]:
    """Windows of each batch of each process."""
    options: dict[str, Any] = {"seed": 5, "order": order, "position": lambda: Position(2, done)}
    read = [
        list(GlobalBatchSampler(len(order), batch_size, num_processes=num_processes, rank=rank, **options))
        for rank in range(num_processes)
    ]
    return [[own[start : start + batch_size] for start in range(0, len(own), batch_size)] for own in read]


@given(mixture=MIXTURES, batch_size=st.integers(1, 3))
def test_global_batches_are_the_same_for_any_number_of_processes(
    mixture: list[tuple[int, float]], batch_size: int
) -> None:
    order = order_of(mixture)
    (whole,) = batches(order, 6 * batch_size, 1)
    for num_processes in (2, 3, 6):
        parts = batches(order, 6 * batch_size // num_processes, num_processes)
        joined = [Counter(window for own in step for window in own) for step in zip(*parts, strict=True)]
        assert [count - Counter({NO_WINDOW: count[NO_WINDOW]}) for count in joined] == list(map(Counter, whole))


@given(mixture=MIXTURES, num_processes=st.integers(1, 3))
def test_an_epoch_resumes_at_every_batch(mixture: list[tuple[int, float]], num_processes: int) -> None:
    order = order_of(mixture)
    whole = batches(order, 2, num_processes)
    for done in range(len(whole[0]) + 1):
        assert batches(order, 2, num_processes, done) == [own[done:] for own in whole]


# Streams --------------------------------------------------------------------------------------------------------------


@given(weights=st.lists(st.sampled_from([0.01, 0.1, 0.37, 1, 2, 9]), min_size=1, max_size=6))
def test_every_prefix_of_a_mixed_stream_has_exact_shares(weights: list[float]) -> None:
    def endless(number: int) -> Any:
        while True:
            yield {"source": number}

    names = list(map(str, range(len(weights))))
    parts = [NamedStream(n, w, endless(int(n)), lambda error: error) for n, w in zip(names, weights, strict=True)]
    counts = Counter[int]()
    for number, window in enumerate(MixedStream(parts), start=1):
        counts[window["source"]] += 1
        assert all(abs(counts[k] - number * weight / sum(weights)) < 1 for k, weight in enumerate(weights))
        if number == 200:
            break
