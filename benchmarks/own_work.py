"""Hidden size 64, so that little but the losses' own work shows: ``python -m benchmarks.own_work``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.measure import Figure, ratios, run
from benchmarks.pair import FLAT, Case, Pair
from xtoken_pl import HybridKL, ProjectionKL
from xtoken_pl.scoring.memory import LogitMemory

_TARGETS = {"P-KL": 3, "H-KL": 5}


def figures() -> Iterator[Figure]:
    """At 1,024 tokens."""
    pair, memory = Pair(), LogitMemory(FLAT)
    losses = {"P-KL": pair.bound(ProjectionKL()), "H-KL": pair.bound(HybridKL())}
    case = Case(pair, 1024, 64)
    times = ratios(case.cross_entropy, {n: partial(case.distil, loss, memory) for n, loss in losses.items()}, 3)
    for name, target in _TARGETS.items():
        what = f"hidden size 64, 1,024 tokens: CE + {name}, flat"
        yield Figure(what, times.ratio(name), "x", target, note=times.note(name))


if __name__ == "__main__":
    run(figures)
