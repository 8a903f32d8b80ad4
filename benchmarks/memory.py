"""Peak memory above inputs, parameters and their gradients: ``python -m benchmarks.memory`` (Linux)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

from benchmarks.measure import Figure, peak_memory, restart_peak_memory, run
from benchmarks.pair import FLAT, LOSSES, WAYS, Case, Pair
from xtoken_pl import SpanLoss
from xtoken_pl.scoring.memory import LogitMemory

#: Losses that are measured with long sequences, too.
_LONG = ("P-KL", "H-KL", "byte-prefix KL")
_SIZES = (512, 8192)


def figures() -> Iterator[Figure]:
    """Each loss in a process of its own, since a process does not give all of its memory back."""
    for name in LOSSES:
        sizes = _SIZES if name in _LONG else _SIZES[:1]
        of_way = {way: _in_own_process(name, way, sizes if way == "flat" else sizes[:1]) for way in WAYS}
        for size, peak in zip(sizes, of_way["flat"], strict=True):
            yield Figure(f"{size:,} tokens: peak memory of CE + {name}, flat", peak, "GB", 0.5)
        if name in _LONG:
            growth = of_way["flat"][1] / of_way["flat"][0] - 1
            yield Figure(f"peak memory of {name}, 8,192 against 512 tokens", 100 * growth, "%", 10)
        yield Figure(f"512 tokens: peak memory of CE + {name}, kept", of_way["kept"][0], "GB")


def _in_own_process(name: str, way: str, sizes: Sequence[int]) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--one", name, way, *map(str, sizes)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(line) for line in output.splitlines()[-len(sizes) :]]


def peaks(name: str, way: str, *sizes: str) -> Iterator[float]:
    """GB for each size; the smallest comes first, so that what it may leave behind does not hide growth."""
    pair = Pair()
    loss = pair.bound(LOSSES[name]())
    Case(pair, 16, 64).distil(loss, LogitMemory(FLAT))  # what libraries set up at their first use
    for num_tokens in map(int, sizes):
        yield _peak(Case(pair, num_tokens, 1024), loss, WAYS[way])


def _peak(case: Case, loss: SpanLoss, budget: float) -> float:
    """GB of resident memory at most, during forward and backward, above what was there before and the gradients."""
    before = restart_peak_memory()
    case.distil(loss, LogitMemory(budget))
    gradients = case.hidden.numel() * 4 + case.head.weight.numel() * 4
    return (peak_memory() - before - gradients) / 1e9


if __name__ == "__main__":
    if "--one" in sys.argv:
        place = sys.argv.index("--one")
        print(*peaks(*sys.argv[place + 1 :]), sep="\n")
    else:
        run(figures)
