"""The experiments run, keep what is finished, and do not do it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from experiments import arithmetic


def test_arithmetic_runs_from_the_teacher_to_the_table_and_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arithmetic, "_TEACHER_TRAINING", replace(arithmetic._TEACHER_TRAINING, steps=2))
    monkeypatch.setattr(arithmetic, "_NUM_HELD_OUT", 20)
    folder = str(tmp_path / "arithmetic")
    arithmetic.main("BytePrefixKL", "splitting", seeds=(0, 1), steps=2, folder=folder)
    assert "| BytePrefixKL | splitting | steps 2, dynamic_scaling True |" in capsys.readouterr().out
    results = arithmetic.read_results(Path(folder))
    assert [result["settings"]["seed"] for result in results] == [0, 1]
    assert all(result["kd"] > 0 and 0 <= result["exact_match"] <= 1 for result in results)
    arithmetic.main("BytePrefixKL", "splitting", seeds=(0,), steps=2, folder=folder)
    assert "there already" in capsys.readouterr().out
    assert arithmetic.read_results(Path(folder)) == results


def test_arithmetic_lines_are_wrong_as_often_as_asked_and_never_held_out(tmp_path: Path) -> None:
    import json

    arithmetic.write_lines(tmp_path / "lines.jsonl", 1000, 0.3, seed=3)
    lines = [json.loads(line)["text"] for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    parsed = [tuple(map(int, line.strip().replace("=", "+").split("+"))) for line in lines]
    assert sum(a + b != c for a, b, c in parsed) == 300
    learned, held_out = arithmetic.split_pairs()
    assert len(held_out) == 1500
    assert not {*learned} & {*held_out}
    assert {(a, b) for a, b, _ in parsed} <= {*learned}


def test_arithmetic_tokenizers_pack_and_split_numbers() -> None:
    line = "37+85=122\n"
    assert [
        len(arithmetic.make_tokenizer(name)(line)["input_ids"]) for name in ("student", "packing", "splitting")
    ] == [
        7,
        7,
        11,
    ]
