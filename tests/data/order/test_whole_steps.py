"""Every batch knows the counts of its whole optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise, repeat

import torch
from hypothesis import given
from hypothesis import strategies as st

from xtoken_pl.batch import DistillBatch
from xtoken_pl.data import collate, whole_steps


def batch(num_tokens: int, num_spans: int, *, shared: bool = False) -> DistillBatch:
    ids = list(range(num_tokens + 1))
    spans = [[place, place + 1, place, place + 1] for place in range(1, num_spans + 1)]
    row = {
        "student_ids": ids,
        "loss_mask": [1] * len(ids),
        "phi/ids": ids,
        "phi/spans": [number for span in spans for number in span],
    }
    made = collate([row], ["phi"])
    if shared:
        made.student.input_ids.share_memory_()
    return made


SIZES = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(lambda pair: (max(pair), min(pair)))


@given(numbers=st.lists(SIZES, max_size=12), sizes=st.lists(st.integers(1, 4), max_size=6))
def test_the_counts_of_a_step_are_the_sums_over_its_batches(numbers: list[tuple[int, int]], sizes: list[int]) -> None:
    batches = [batch(*pair) for pair in numbers]
    found = list(whole_steps(batches, sizes))
    assert [len(one.student.labels) for one in found] == [num_tokens for num_tokens, _ in numbers]
    ends = [*accumulate(sizes, initial=0), *range(sum(sizes) + 1, sum(sizes) + len(numbers) + 1)]
    for first, end in pairwise(ends):
        step = [one.step for one in found[first:end]]
        tokens, spans = (sum(pair[which] for pair in numbers[first:end]) for which in (0, 1))
        assert all(counts is not None for counts in step)
        assert [(c.num_tokens, c.num_spans, c.place, c.num_batches) for c in step if c] == [
            (tokens, {"phi": spans}, place, len(step)) for place in range(len(step))
        ]


class Endless:
    """Batches without end, which counts those that were read."""

    def __init__(self) -> None:
        self.num_read = 0

    def __iter__(self) -> Iterator[DistillBatch]:
        while True:
            self.num_read += 1
            yield batch(3, 2)


def test_the_batches_of_one_step_are_held_and_read_one_by_one() -> None:
    read = Endless()
    batches = whole_steps(read, repeat(4))
    assert read.num_read == 0
    for expected in (4, 5, 6, 7, 8, 9):
        next(batches)
        assert read.num_read == expected


def test_no_batch_is_read_ahead_if_each_is_a_step() -> None:
    read = Endless()
    batches = whole_steps(read, [2, 2])
    for expected in (2, 3, 4, 4, 5, 6):  # and none beyond the steps that are known
        next(batches)
        assert read.num_read == expected


def test_batches_that_wait_hold_no_shared_memory_of_workers() -> None:
    first, _ = whole_steps([batch(3, 2, shared=True), batch(3, 2)], [2])
    assert not first.student.input_ids.is_shared()
    assert torch.equal(first.student.input_ids, batch(3, 2).student.input_ids)


def test_a_batch_by_itself_is_a_step() -> None:
    counts = batch(5, 3).step_counts
    assert (counts.num_tokens, counts.num_spans, counts.is_first, counts.is_last) == (5, {"phi": 3}, True, True)
