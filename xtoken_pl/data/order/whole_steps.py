"""Batches that know the counts of their whole optimizer step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from xtoken_pl.batch import DistillBatch, as_steps


def whole_steps(batches: Iterable[DistillBatch], sizes: Iterable[int]) -> Iterator[DistillBatch]:
    """Adds the counts of tokens and spans of its whole optimizer step to every batch.

    The gradient of a step then does not depend on how its windows are cut into batches: each loss is a sum that is
    divided by the count of the step. The batches of one step are read ahead and held in memory. Those of the following
    step take their places one by one, while the step is computed, so that training does not wait for all of them.

    Args:
        batches: Batches of this process.
        sizes: Number of batches of each step (``itertools.repeat(trainer.accumulate_grad_batches)``, if no epoch ends
            within a step); batches after the last of them are steps by themselves.
    """
    rest, following_sizes = iter(batches), iter(sizes)
    held: deque[DistillBatch] = deque()
    size = next(following_sizes, 1)
    while True:
        held.extend(_read(rest, size - len(held), size))
        if not held:
            return
        counts, size = as_steps(held), next(following_sizes, 1)
        for step in counts:
            yield replace(held.popleft(), step=step)
            num_of_following = len(held) - (step.num_batches - 1 - step.place)
            held.extend(_read(rest, int(1 < size > num_of_following), size))


def _read(rest: Iterator[DistillBatch], num_batches: int, size: int) -> Iterator[DistillBatch]:
    """Reads batches of a step of ``size`` batches, which wait for one another if they are several."""
    return (batch if size == 1 else batch.unshared() for batch in islice(rest, num_batches))
