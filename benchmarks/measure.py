"""Figures with a target, and how they are taken."""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        what: What was measured.
        value: The figure.
        unit: Its unit; ``x`` for a ratio.
        target: The bound, or None where none is set.
        at_least: Whether the target is a lower bound.
        note: What the figure was computed from.
    """

    what: str
    value: float
    unit: str = "x"
    target: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the target is met, or by how much it is missed."""
        if self.target is None:
            return ""
        if self.value >= self.target if self.at_least else self.value <= self.target:
            return "met"
        if self.target == 0:
            return f"missed by {abs(self.value):.3g}"
        return f"missed by {abs(self.value / self.target - 1):.0%}"

    def row(self) -> list[str]:
        """The cells of a table: what, value, target, verdict, note."""
        sign = ">=" if self.at_least else "<="
        target = "" if self.target is None else f"{sign} {self.target:g} {self.unit}"
        return [self.what, f"{self.value:.3g} {self.unit}", target, self.verdict, self.note]


def seconds(function: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """The time of one call, by a clock in seconds."""
    start = clock()
    function()
    return clock() - start


def ratios(
    baseline: Callable[[], object],
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Times everything in turn, ``rounds`` times after a first one that does not count (``warm_up``).

    A machine that becomes slower during a run does so for both sides of a ratio.
    """
    times: dict[str, list[float]] = {"": [], **{name: [] for name in candidates}}
    for round_ in range(0 if warm_up else 1, rounds + 1):
        for name, function in {"": baseline, **candidates}.items():
            taken = seconds(function, clock)
            if round_:
                times[name].append(taken)
    return Times(times.pop(""), times)


@dataclass(frozen=True)
class Times:
    """Seconds of every round, of the baseline and of each candidate."""

    baseline: list[float]
    candidates: dict[str, list[float]]

    def ratio(self, name: str) -> float:
        """Median over rounds of candidate / baseline."""
        return statistics.median(c / b for c, b in zip(self.candidates[name], self.baseline, strict=True))

    def note(self, name: str) -> str:
        """The medians behind a ratio."""
        medians = statistics.median(self.candidates[name]), statistics.median(self.baseline)
        return f"{medians[0]:.2f} s / {medians[1]:.2f} s"


def restart_peak_memory() -> int:
    """Returns the resident memory in bytes, without what is free, and lets its peak start anew (Linux)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or memory that is free, but resident, would not count
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def peak_memory() -> int:
    """Returns the largest resident memory in bytes since :func:`restart_peak_memory`."""
    return _memory("VmHWM")


def _memory(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return 1024 * int(match[1])


def run(figures: Callable[[], Iterator[Figure]]) -> None:
    """Prints the figures of one benchmark as they come; with ``--json FILE`` it writes them, too."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    path = parser.parse_args().json
    found: list[Figure] = []
    for figure in figures():
        print(" | ".join(cell for cell in figure.row() if cell), flush=True)
        found.append(figure)
        if path:
            path.write_text(json.dumps([asdict(figure) for figure in found], indent=1))
