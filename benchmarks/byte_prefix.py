"""The byte-prefix KL against P-KL, its plans, and its map: ``python -m benchmarks.byte_prefix``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.measure import Figure, ratios, run, seconds
from benchmarks.pair import KEPT, WAYS, Case, Pair
from xtoken_pl import BytePrefixKL, PrefixMap, ProjectionKL, build_prefix_map
from xtoken_pl.scoring.memory import LogitMemory

_ROUNDS = 2


def figures() -> Iterator[Figure]:
    """Whole steps at hidden size 1,024, the losses' own work at 64, and what comes before the first step."""
    pair = Pair()
    build = partial(build_prefix_map, pair.student_tokenizer, pair.teacher_tokenizer)
    yield Figure("compiling the prefix map", seconds(build), "s", 15)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.safetensors"
        build().save(path)
        yield Figure("loading the prefix map", seconds(lambda: PrefixMap.load(path)), "s", 0.3)
    yield from _steps(pair, "512 tokens: CE + byte-prefix KL against CE + P-KL")
    ours, projected = pair.bound(BytePrefixKL()), pair.bound(ProjectionKL())
    yield _against(Case(pair, 512, 64), "the same at hidden size 64, kept", ours, projected, KEPT)
    batch = Case(pair, 4096, 64).batch
    yield Figure("planning 4,096 tokens", 1e3 * seconds(lambda: batch.planned({"teacher0": ours.planner})), "ms", 40)
    yield from _steps(Pair.of_shorter_tokens(), "SmolLM2 from Qwen 3: the same")


def _steps(pair: Pair, what: str) -> Iterator[Figure]:
    ours, projected, case = pair.bound(BytePrefixKL()), pair.bound(ProjectionKL()), Case(pair, 512, 1024)
    for name, budget in WAYS.items():
        yield _against(case, f"{what}, {name}", ours, projected, budget)


def _against(case: Case, what: str, ours: BytePrefixKL, projected: ProjectionKL, budget: float) -> Figure:
    candidates: dict[str, Callable[[], object]] = {"ours": partial(case.distil, ours, LogitMemory(budget))}
    times = ratios(partial(case.distil, projected, LogitMemory(budget)), candidates, _ROUNDS)
    return Figure(what, times.ratio("ours"), "x", 1.5, note=times.note("ours"))


if __name__ == "__main__":
    run(figures)
