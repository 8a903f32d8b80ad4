"""Helpers of this folder that are started as programs of their own, since they train in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_helper(name: str, *arguments: str | Path, timeout: float | None = None) -> None:
    """Runs tests/helpers/NAME.py, with one thread in each process, and fails with the end of what it printed as errors.

    Args:
        name: The helper.
        arguments: Of its command line.
        timeout: Seconds after which it is taken to hang.
    """
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
