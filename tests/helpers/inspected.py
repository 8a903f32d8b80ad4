"""A text and small models to inspect, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_models import packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl import MultiTeacherDistillModule, Student, Teacher, build_projection
from xtoken_pl.data import Windower
from xtoken_pl.inspection import Counterparts, Inspection
from xtoken_pl.losses.counterparts import counterparts_in_projection
from xtoken_pl.tokenization import CanonicalVocabulary

#: A text with characters that are special in HTML, terminals and matplotlib, or invisible.
NASTY = "<script>alert('1 & 2')</script>\n\"é数\x1b[31m\u202e 1984 $x_1^2$ | ´\u0301"


def write_models(root: Path) -> dict[str, str]:
    """Writes models by the names ``student``, ``same`` (the student's tokenizer) and ``split``; returns their paths."""
    tokenizers = {"student": packing_tokenizer(), "same": packing_tokenizer(), "split": splitting_tokenizer()}
    return {name: write_model(root / name, made, seed=seed) for seed, (name, made) in enumerate(tokenizers.items())}


def make_module(folders: dict[str, str], **teachers: tuple[str, dict[str, Any]]) -> MultiTeacherDistillModule:
    """Builds a module of those models in float64; each teacher is given as its model's name and its options."""
    chosen = {
        name: Teacher(model=folders[folder], dtype="float64", **options) for name, (folder, options) in teachers.items()
    }
    module = MultiTeacherDistillModule(Student(model=folders["student"], dtype="float64"), chosen)
    module.setup("fit")
    module.configure_model()
    return module.eval()


def windows_of(student: CanonicalVocabulary, teachers: dict[str, CanonicalVocabulary], *texts: str) -> list[Any]:
    columns = Windower(student, teachers, 4096)(texts)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def vocabularies() -> tuple[CanonicalVocabulary, dict[str, CanonicalVocabulary]]:
    student, teacher = map(CanonicalVocabulary.from_tokenizer, (packing_tokenizer(), splitting_tokenizer()))
    return student, {"split": teacher}


def inspection_of(text: str) -> Inspection:
    student, teachers = vocabularies()
    (window,) = windows_of(student, teachers, text)
    return Inspection.from_window("title", window, student, teachers)


def with_rows_of_w(text: str) -> Inspection:
    student, teachers = vocabularies()
    shown = inspection_of(text)
    matrix = build_projection(student.tokenizer, teachers["split"].tokenizer)
    rows = counterparts_in_projection(matrix, [token.id for token in shown.tokens])
    return shown.with_counterparts({"split": Counterparts.from_loss(rows, student, teachers["split"])})
