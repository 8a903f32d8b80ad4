"""The whole GPU check, in miniature, as `make gpu-check` runs it on a machine without a GPU."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check.parts import PARTS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_part_reports_figures_in_miniature(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--miniature", "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    results = json.loads((folder / "results.json").read_text())
    statuses = {part["name"]: part["status"] for part in results["parts"]}
    assert statuses == dict.fromkeys([part.name for part in PARTS], "done"), done.stdout + done.stderr
    for part in results["parts"]:
        assert len(part["figures"]) >= 4, part["name"]
        assert all(math.isfinite(figure["value"]) for figure in part["figures"])
        missed = [figure["what"] for figure in part["figures"] if figure["verdict"].startswith("missed")]
        assert missed == [], part["name"]
    assert done.returncode == 0
    table = (folder / "results.md").read_text()
    for part in PARTS:
        assert f"\n## {part.title}\n" in table
    assert "In miniature" in table
    assert done.stdout.endswith(f"written to {folder / 'results.md'}\n")
