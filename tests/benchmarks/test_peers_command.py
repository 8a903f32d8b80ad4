"""The command from its options to the stored table, with runs that are recorded instead of made."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from split_tokenizers import split_tokenizer

from benchmarks.peers import __main__ as command
from benchmarks.peers.runs import ALIGNED, RUNS

# 12|3 and 1|23: the first group begins with the teacher's first token, and ends of both sides differ inside it.
WINDOW = {"student_ids": [0, 1, 1], "teacher_ids": [0, 1, 2], "groups": [[[0, 1], [0, 1]], [[2], [2]]]}


class RecordedRuns:
    """Stands in for the processes of runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.made = Counter[tuple[str, str, int]]()
        self.folder = folder
        split_tokenizer(["12", "3"]).save_pretrained(folder / "student_tokenizer")
        split_tokenizer(["1", "23", "3"]).save_pretrained(folder / "teacher_tokenizer")
        page = "before\n" + command.BEGIN + "old\n" + command.END + "\nafter\n"
        (folder / "README.md").write_text(page)
        monkeypatch.setattr(command, "RESULTS", folder / "results.json")
        monkeypatch.setattr(command, "README", folder / "README.md")
        monkeypatch.setattr(command, "prepare", lambda: None)
        monkeypatch.setattr(command, "add_tokenizer", lambda *_: None)
        monkeypatch.setattr(command, "bits_per_byte", lambda student: 2 + len(student.name) / 10)
        monkeypatch.setattr(command, "write_job", self.write_job)
        monkeypatch.setattr(command.Comparison, "run", self.run)

    def write_job(self, folder: Path, *_: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        job = {side: str(self.folder / f"{side}_tokenizer") for side in ("student", "teacher")}
        (folder / "job.json").write_text(json.dumps(job))

    def run(self, name: str, job: str, num_steps: int, *, student: Path | None = None, groups: bool = False) -> Any:
        """A run whose first step is slow."""
        self.made[name, job, num_steps] += 1
        if groups:
            (self.folder / "peers" / "groups.json").write_text(json.dumps([WINDOW] * num_steps))
        seconds = [50.0] + [4.0 if RUNS[name].side == "trl" else 2.0] * (num_steps - 1)
        record = {"seconds": seconds, "cpu_seconds": seconds, "peak_bytes": 10**9, "losses": seconds}
        versions = {"trl": "1.2"} if RUNS[name].side == "trl" else {"lightning": "3.4"}
        return {**record, "num_tokens": [400] * num_steps, "threads": 2, "packages": versions}


def test_command_times_trains_judges_and_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = RecordedRuns(monkeypatch, tmp_path)
    options = {"steps": 20, "rounds": 2, "timed-steps": 3, "warm-up": 1, "folder": tmp_path / "peers"}
    given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["peers", *given, "--store"])
    command.main()

    num_script_steps = len(command.SCRIPTS.read_text().splitlines()) // 2
    expected = Counter({(name, "job", 4): 2 for name in RUNS}) + Counter((name, "job", 20) for name in RUNS)
    assert runs.made == expected + Counter((name, "scripts", num_script_steps) for name in ALIGNED)

    found = json.loads((tmp_path / "results.json").read_text())
    assert found["settings"]["tokens_per_step"] == 400
    assert found["runs"]["trl_uld"]["seconds"] == [[4.0] * 3] * 2  # the slow step is part of the warm-up
    assert found["runs"]["trl_uld"]["bits_per_byte"] == 2.7
    theirs, ours = found["runs"]["trl_uld"]["alignment"], found["own_alignment"]
    assert (theirs["num_tokens"], theirs["num_lost"], theirs["num_unequal_rows"]) == (6 * 20, 0, 20)
    assert (ours["num_lost"], ours["num_unequal_rows"]) == (4 * 20, 0)
    kept = json.loads((tmp_path / "peers" / "runs.json").read_text())
    assert kept["ce"]["seconds"] == found["runs"]["ce"]["seconds"]
    page = (tmp_path / "README.md").read_text()
    assert "2 threads; TRL with trl 1.2; this package with lightning 3.4." in page
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page.splitlines()
    assert f"| {RUNS['trl_uld'].label} | 4.00 | 2.00 x | 4.00 | 1.00 GB |" in page


def test_scripts_are_pairs_of_windows() -> None:
    assert len(command.SCRIPTS.read_text().splitlines()) % 2 == 0


def test_a_run_that_fails_shows_its_output(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no such job >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"trl_run --job .*/job --run trl_uld .* failed:\nno such job"):
        command.Comparison(tmp_path, program, []).run("trl_uld", "job", 1)
