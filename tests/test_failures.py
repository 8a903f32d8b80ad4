"""What breaks on purpose ends in a clear error, and nothing that had been saved is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "failures"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "scenario")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_failure_is_clear_and_loses_nothing(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{script}.py")], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert "said: " in done.stdout
