"""TRL's trainer on tiny models: what it compares is recorded as it is, and its student is saved."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model

from benchmarks.peers.alignment import compare
from benchmarks.peers.job import JobSettings, window_of
from benchmarks.peers.runs import RUNS
from xtoken_pl.tokenization import CanonicalVocabulary

pytestmark = pytest.mark.slow  # loads TRL, and trains
STUDENT, TEACHER = packing_tokenizer(), splitting_tokenizer()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Two steps of texts with numerals and with characters of several bytes; the first window ends a document."""
    settings = JobSettings(
        student=write_model(tmp_path / "student", STUDENT),
        teacher=write_model(tmp_path / "teacher", TEACHER),
        batch_size=2,
        learning_rate=1e-3,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        warmup_fraction=0.5,
        clip=1.0,
        seed=0,
    )
    (tmp_path / "job.json").write_text(json.dumps(asdict(settings)))
    vocabulary = CanonicalVocabulary.from_tokenizer(STUDENT)
    texts = ["1234 + 5678 = 6912, or 31 December 1999.", "naïve 日本語 👍🏽 and 12", TEXTS[0][:80], TEXTS[1][:60]]
    ids = [[*vocabulary.prefix_ids, *own] for own in vocabulary.encode(texts)]
    ids[0].append(vocabulary.roles["eos"])
    windows = [window_of(vocabulary, own) for own in ids]
    (tmp_path / "windows.jsonl").write_text("".join(json.dumps(window) + "\n" for window in windows))
    return tmp_path


@pytest.mark.parametrize("name", ["trl_gold", "trl_uld_bayesian"])
def test_run_of_trl_is_recorded(name: str, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, groups, student = tmp_path / "record.json", tmp_path / "groups.json", tmp_path / "trained"
    arguments = {"job": job, "run": name, "steps": 2, "output": output, "groups": groups, "student": student}
    given = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["trl_run", *given])
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    import_module("benchmarks.peers.trl_run").main()  # takes seconds, only if this test runs

    record = json.loads(output.read_text())
    windows = [json.loads(line) for line in (job / "windows.jsonl").read_text().splitlines()]
    lengths = [len(window["ids"]) for window in windows]
    assert record["num_tokens"] == [sum(lengths[:2]), sum(lengths[2:])]
    assert len(record["seconds"]) == len(record["cpu_seconds"]) == len(record["losses"]) == 2
    assert record["peak_bytes"] > 0
    assert (student / "model.safetensors").exists()

    recorded = json.loads(groups.read_text())
    assert [window["student_ids"] for window in recorded] == [window["ids"][1:] for window in windows]
    sides = CanonicalVocabulary.from_tokenizer(STUDENT), CanonicalVocabulary.from_tokenizer(TEACHER)
    theirs, ours = compare(*sides, recorded, RUNS[name].merge)
    assert (theirs.num_misaligned, theirs.num_coarse) == (ours.num_misaligned, ours.num_coarse) == (0, 0)
    assert theirs.num_lost == (ours.num_lost if RUNS[name].merge == "bayesian" else 0)
    assert theirs.num_unequal_rows > ours.num_unequal_rows == 0
