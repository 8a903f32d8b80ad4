"""The parts of the check, in the order in which they run, and the process that runs one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path

from benchmarks.measure import Figure


@dataclass(frozen=True)
class Part:
    """One part, a module of this package that is run in a process of its own.

    Attributes:
        name: Name of the module.
        title: Title of its figures.
        seconds: Time that is set aside for it at full size, all together below 8 minutes; what earlier parts have left
            is added to its time limit.
    """

    name: str
    title: str
    seconds: float


PARTS = (
    Part("correctness", "Losses and steps against float64 on the CPU", 100),
    Part("speed", "A step of a 1-billion student with a 4-billion teacher", 150),
    Part("kernels", "Slowest kernels, and synchronizations", 90),
    Part("sharded", "FSDP2 on one process", 30),
    Part("rollouts", "On-policy steps", 60),
    Part("qlora", "QLoRA", 30),
)


@dataclass(frozen=True)
class PartResult:
    """What came out of a part.

    Attributes:
        part: The part.
        status: ``done``, ``not run: REASON`` or ``failed: REASON``.
        seconds: Time that its process took.
        figures: Its figures; those taken before the failure, if it failed.
    """

    part: Part
    status: str
    seconds: float
    figures: list[Figure]

    @property
    def is_failed(self) -> bool:
        """Whether the part failed, missed a target, or has a figure that is no number."""
        missed = any(figure.verdict.startswith("missed") for figure in self.figures)
        return self.status.startswith("failed") or missed or not all(isfinite(figure.value) for figure in self.figures)

    def to_dict(self) -> dict[str, object]:
        """Content for the JSON file."""
        figures = [{**asdict(figure), "verdict": figure.verdict} for figure in self.figures]
        described = {"name": self.part.name, "title": self.part.title}
        return {**described, "status": self.status, "seconds": round(self.seconds, 1), "figures": figures}


def run_part(part: Part, file: Path, options: Sequence[str], limit: float | None) -> PartResult:
    """Runs a part, and stops it at its time limit with all processes that it has started.

    Args:
        part: The part.
        file: File that the process writes its figures to, line by line.
        options: Options of the process.
        limit: Time limit in seconds; None for none.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_check.one_part", part.name, "--lines", str(file), *options]
    begin = time.perf_counter()
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(None if limit is None else max(0.0, limit))
        ended = "" if code == 0 else f"failed: its process ended with {_in_words(code)}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        ended = f"failed: it took longer than its time limit of {limit:.0f} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    statuses = [line["status"] for line in lines if "status" in line]
    figures = [Figure(**line) for line in lines if "status" not in line]
    status = ended or (statuses[-1] if statuses else "failed: its process wrote no result")
    return PartResult(part, status, time.perf_counter() - begin, figures)


def _in_words(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
