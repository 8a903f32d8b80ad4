"""Suites of runs that take two steps, as tests of the runner need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from experiments.suites import Lines, Run, Suite
from xtoken_pl.cli.config_files import merge

LINES = (Lines("addition", 40, 0.25),)
_SHARED = yaml.safe_load((Path(__file__).parents[2] / "experiments/configs/model.yaml").read_text())
_STUDENT: dict[str, Any] = {
    "model": {"student": {"model": "${folder}/models/student", "weights": "random"}, "kd_weight": 0.0},
    "data": {
        "train": {"path": "${lines}"},
        "val": {"path": "${folder}/test/addition_lines.jsonl"},
        "sequence_length": 32,
        "batch_size": 4,
    },
    "trainer": {"max_steps": 2, "val_check_interval": 2, "limit_val_batches": 1, "log_every_n_steps": 1},
}
ALONE: dict[str, Any] = merge(_SHARED, _STUDENT)
_EXPORT = {"class_path": "xtoken_pl.callbacks.HFExport", "init_args": {"dirpath": "${run_folder}/export"}}
#: A teacher, which is exported.
TEACHER = merge(
    ALONE,
    {
        "model": {"student": {"model": "${folder}/models/teacher_splitting"}},
        "trainer": {"callbacks": [_EXPORT]},
    },
)


def taught_by(reference: str) -> dict[str, Any]:
    """The configuration of a student of the teacher ``suite/run``."""
    teacher = {"model": f"${{run:{reference}}}/export", "loss": {"class_path": "xtoken_pl.ProjectionKL"}}
    return merge(ALONE, {"model": {"kd_weight": 1.0, "teachers": {"d": teacher}}})


def suite_of(configs: dict[str, dict[str, Any]], seeds: dict[str, tuple[int, ...]] | None = None) -> dict[str, Suite]:
    """The suite ``small`` of these runs; seed 0 unless others are given."""
    runs = {
        name: Run("small", name, name, "", (seeds or {}).get(name, (0,)), config, LINES, "", {})
        for name, config in configs.items()
    }
    return {"small": Suite("small", "Small", {"val/bits_per_byte": "bits per byte"}, runs)}
