"""Cross-entropy with distillation against cross-entropy alone: ``python -m benchmarks.losses``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.measure import Figure, Times, ratios, run
from benchmarks.pair import FLAT, LOSSES, WAYS, Case, Pair
from xtoken_pl import SpanLoss
from xtoken_pl.scoring.memory import LogitMemory

_ROUNDS = 2


def figures() -> Iterator[Figure]:
    """At 512 tokens, with one more teacher, each loss against P-KL, and at 4,096 tokens."""
    pair = Pair()
    losses = {name: pair.bound(kind()) for name, kind in LOSSES.items()}
    targets = {"P-KL": (1.8, 2.2), "H-KL": (2.2, 2.6), "GOLD": (2.2, 2.6)}
    case = Case(pair, 512, 1024)
    candidates: dict[str, Callable[[], object]] = {
        f"{name}, {way}": partial(case.distil, losses[name], LogitMemory(budget))
        for name in targets
        for way, budget in WAYS.items()
    }
    two = Case(pair, 512, 1024, num_teachers=2)
    candidates["P-KL of two teachers, flat"] = partial(two.distil, losses["P-KL"], LogitMemory(FLAT))
    short = ratios(case.cross_entropy, candidates, _ROUNDS)
    for name, both in targets.items():
        for way, target in zip(WAYS, both, strict=True):
            yield _figure(short, f"{name}, {way}", "512 tokens: CE + ", target)
    further = short.ratio("P-KL of two teachers, flat") - short.ratio("P-KL, flat")
    yield Figure("512 tokens: each further teacher (P-KL), flat", further, "x", 0.8)
    del two, candidates
    yield from _against_projection(case, losses)
    del case

    long = Case(pair, 4096, 1024)
    names = ("P-KL", "H-KL")
    flat = {f"{name}, flat": partial(long.distil, losses[name], LogitMemory(FLAT)) for name in names}
    times = ratios(long.cross_entropy, flat, 1, warm_up=False)
    for name in flat:
        change = times.ratio(name) / short.ratio(name) - 1
        yield Figure(
            f"4,096 tokens: ratio of CE + {name} against 512 tokens", 100 * change, "%", 15, note=times.note(name)
        )


def _against_projection(case: Case, losses: dict[str, SpanLoss]) -> Iterator[Figure]:
    """Complete steps under each loss, including its plan, against the same steps under P-KL."""
    for way, budget in WAYS.items():
        steps = {name: partial(case.distil, loss, LogitMemory(budget)) for name, loss in losses.items()}
        times = ratios(steps.pop("P-KL"), steps, _ROUNDS)
        for name in steps:
            yield _figure(times, name, f"512 tokens, {way}, against CE + P-KL: CE + ", None)


def _figure(times: Times, name: str, prefix: str, target: float | None) -> Figure:
    return Figure(prefix + name, times.ratio(name), "x", target, note=times.note(name))


if __name__ == "__main__":
    run(figures)
