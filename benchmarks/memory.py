"""Peak memory above inputs, parameters and their gradients: ``python -m benchmarks.memory`` (Linux)."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Figure, run
from benchmarks.pair import FLAT, Case, Pair
from xtoken_pl import BytePrefixKL, HybridKL, ProjectionKL, SpanLoss
from xtoken_pl.scoring.memory import LogitMemory

_LOSSES = {"P-KL": ProjectionKL, "H-KL": HybridKL, "byte-prefix KL": BytePrefixKL}
_SIZES = (512, 8192)


def figures() -> Iterator[Figure]:
    """Each loss in a process of its own, since a process does not give all of its memory back."""
    for name in _LOSSES:
        peaks = _in_own_process(name)
        for size, peak in zip(_SIZES, peaks, strict=True):
            yield Figure(f"{size:,} tokens: peak memory of CE + {name}, flat", peak, "GB", 0.5)
        yield Figure(f"peak memory of {name}, 8,192 against 512 tokens", 100 * (peaks[1] / peaks[0] - 1), "%", 10)


def _in_own_process(name: str) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--one", name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(line) for line in output.splitlines()[-len(_SIZES) :]]


def peaks(name: str) -> Iterator[float]:
    """GB for each size; the smallest comes first, so that what it may leave behind does not hide growth."""
    pair = Pair()
    loss = pair.bound(_LOSSES[name]())
    Case(pair, 16, 64).distil(loss, LogitMemory(FLAT))  # what libraries set up at their first use
    for num_tokens in _SIZES:
        yield _peak(Case(pair, num_tokens, 1024), loss)


def _peak(case: Case, loss: SpanLoss) -> float:
    """GB of resident memory at most, during forward and backward, above what was there before and the gradients."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or memory that is free, but resident, would not count
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    case.distil(loss, LogitMemory(FLAT))
    gradients = case.hidden.numel() * 4 + case.head.weight.numel() * 4
    return (_status("VmHWM") - before - gradients) / 1e9


def _status(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return 1024 * int(match[1])


if __name__ == "__main__":
    if "--one" in sys.argv:
        place = sys.argv.index("--one")
        print(*peaks(sys.argv[place + 1]), sep="\n")
    else:
        run(figures)
