"""A student sharded over two processes writes what it writes on one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_writing
import torch
from sharded_writing import SAMPLING, SHARES, gradient
from tiny_writers import PROMPTS, letters, requests, tiny_student

from xtoken_pl.rollouts import TransformersEngine


@pytest.mark.slow
def test_each_process_writes_its_own_texts_at_its_own_pace(tmp_path: Path) -> None:
    script = str(Path(sharded_writing.__file__))
    processes = [subprocess.Popen([sys.executable, script, str(rank), str(tmp_path)]) for rank in range(2)]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    student = tiny_student()
    expected = TransformersEngine().write(requests(PROMPTS), SAMPLING, student, letters())
    for rank in range(2):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        own = [[list(expected[place].ids) for place in shares[rank]] for shares in SHARES]
        assert results["written"] == own
        for found in (results["gradient"], results["again"]):
            for values, reference in zip(found, gradient(student), strict=True):
                torch.testing.assert_close(torch.tensor(values), torch.tensor(reference), rtol=1e-6, atol=1e-9)
