"""A small run to plan, and the memory that a real one takes, for tests."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from small_models import packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl import (
    HybridKL,
    Student,
    Teacher,
)
from xtoken_pl.plan.run import Run


def write_models(folder: Path) -> Path:
    """Writes a student, one with a tied head, and a teacher with another tokenizer."""
    write_model(folder / "student", packing_tokenizer(), hidden_size=64)
    write_model(folder / "tied", packing_tokenizer(), hidden_size=64, tied=True)
    write_model(folder / "teacher", splitting_tokenizer(), hidden_size=64)
    return folder


def run_of(models: Path, **changes: Any) -> Run:
    teachers = {"t": Teacher(model=str(models / "teacher"), loss=HybridKL())}
    run = Run(Student(model=str(models / "student")), teachers, 8, 128, logits_memory=10_000_000)
    return replace(run, **changes)


def most_allocated(profiler: Any) -> int:
    """Peak of the bytes that the profiled code allocated."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
