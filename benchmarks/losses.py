"""Cross-entropy with distillation against cross-entropy alone: ``python -m benchmarks.losses``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.measure import Figure, Times, ratios, run
from benchmarks.pair import FLAT, KEPT, Case, Pair
from xtoken_pl import GOLD, HybridKL, ProjectionKL
from xtoken_pl.scoring.memory import LogitMemory

_WAYS = {"kept": KEPT, "flat": FLAT}
_ROUNDS = 2


def figures() -> Iterator[Figure]:
    """At 512 tokens, with one more teacher, and at 4,096 tokens."""
    pair = Pair()
    losses = {"P-KL": pair.bound(ProjectionKL()), "H-KL": pair.bound(HybridKL()), "GOLD": pair.bound(GOLD())}
    targets = {"P-KL": (1.8, 2.2), "H-KL": (2.2, 2.6), "GOLD": (2.2, 2.6)}
    case = Case(pair, 512, 1024)
    candidates: dict[str, Callable[[], object]] = {
        f"{name}, {way}": partial(case.distil, loss, LogitMemory(budget))
        for name, loss in losses.items()
        for way, budget in _WAYS.items()
    }
    two = Case(pair, 512, 1024, num_teachers=2)
    candidates["P-KL of two teachers, flat"] = partial(two.distil, losses["P-KL"], LogitMemory(FLAT))
    short = ratios(case.cross_entropy, candidates, _ROUNDS)
    for name, both in targets.items():
        for way, target in zip(_WAYS, both, strict=True):
            yield _figure(short, f"{name}, {way}", "512 tokens: CE + ", target)
    further = short.ratio("P-KL of two teachers, flat") - short.ratio("P-KL, flat")
    yield Figure("512 tokens: each further teacher (P-KL), flat", further, "x", 0.8)
    del case, two, candidates

    long = Case(pair, 4096, 1024)
    names = ("P-KL", "H-KL")
    flat = {f"{name}, flat": partial(long.distil, losses[name], LogitMemory(FLAT)) for name in names}
    times = ratios(long.cross_entropy, flat, 1, warm_up=False)
    for name in flat:
        change = times.ratio(name) / short.ratio(name) - 1
        yield Figure(
            f"4,096 tokens: ratio of CE + {name} against 512 tokens", 100 * change, "%", 15, note=times.note(name)
        )


def _figure(times: Times, name: str, prefix: str, target: float) -> Figure:
    return Figure(prefix + name, times.ratio(name), "x", target, note=times.note(name))


if __name__ == "__main__":
    run(figures)
