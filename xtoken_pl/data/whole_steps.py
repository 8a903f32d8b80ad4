"""Batches that know the counts of their whole optimizer step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice, repeat

from xtoken_pl.batch import DistillBatch, as_steps


def whole_steps(batches: Iterable[DistillBatch], sizes: Iterable[int]) -> Iterator[DistillBatch]:
    """Adds the counts of tokens and spans of its whole optimizer step to every batch.

    The gradient of a step then does not depend on how its windows are cut into batches: each loss is a sum that is
    divided by the count of the step. The batches of one step are read ahead and held in memory.

    Args:
        batches: Batches of this process.
        sizes: Number of batches of each step (``itertools.repeat(trainer.accumulate_grad_batches)``, if no epoch ends
            within a step); batches after the last of them are steps by themselves.
    """
    rest = iter(batches)
    for size in chain(sizes, repeat(1)):
        held = deque(batch if size == 1 else batch.unshared() for batch in islice(rest, size))
        if not held:
            return
        for step in as_steps(held):
            yield replace(held.popleft(), step=step)
