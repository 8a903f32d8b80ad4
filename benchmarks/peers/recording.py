"""What every run writes: seconds of its steps, peak memory, losses. Needs the standard library only, on either side."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import peak_memory, restart_peak_memory


@dataclass
class Recorder:
    """Measures a training loop from the end of one step to the end of the next, loading and logging included.

    Attributes:
        seconds: Seconds of every step.
        cpu_seconds: Seconds of all cores of every step, which other processes on the machine disturb less.
        num_tokens: Student tokens of every step, padding not included.
        losses: Total loss of every step.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    _last: tuple[float, float] = (0.0, 0.0)

    def begin(self) -> None:
        """Starts measuring; called right before the first step, when the models are loaded."""
        restart_peak_memory()
        self._last = _clocks()

    def end_step(self) -> None:
        """Ends a step."""
        now = _clocks()
        self.seconds.append(now[0] - self._last[0])
        self.cpu_seconds.append(now[1] - self._last[1])
        self._last = now

    def write(self, path: Path, threads: int, *packages: str) -> None:
        """Writes the record as JSON.

        Args:
            path: Output file.
            threads: Number of threads that the run had.
            packages: Packages that the run used, whose versions are written.
        """
        names = ("seconds", "cpu_seconds", "num_tokens", "losses")
        values = {name: getattr(self, name) for name in names}
        versions = {name: version(name) for name in packages}
        record = {**values, "peak_bytes": peak_memory(), "threads": threads, "packages": versions}
        path.write_text(json.dumps(record))


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def run_arguments(description: str | None) -> argparse.Namespace:
    """Parses the arguments of a run, the same ones on either side."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--job", type=Path, required=True, help="directory of the job")
    parser.add_argument("--run", required=True, help="name of the run, see runs.py")
    parser.add_argument("--steps", type=int, required=True, help="number of optimizer steps")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--student", type=Path, help="directory in which the student is saved")
    parser.add_argument("--groups", type=Path, help="JSON file of alignment groups to write")
    return parser.parse_args()
