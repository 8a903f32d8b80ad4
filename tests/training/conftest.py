"""A student, a teacher, and a module with both."""

from __future__ import annotations

from typing import Any

import pytest
from module_steps import MakeModule
from small_models import packing_tokenizer, splitting_tokenizer, write_model

from xtoken_pl import MultiTeacherDistillModule, ProjectionKL, Student, Teacher


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return Student(model=write_model(tmp_path_factory.mktemp("student"), packing_tokenizer(), seed=1))


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("teacher"), splitting_tokenizer(), seed=2)


@pytest.fixture
def make(student: Student, teacher_folder: str) -> MakeModule:
    def make(*, ready: bool = True, **options: Any) -> MultiTeacherDistillModule:
        options.setdefault("teachers", {"split": Teacher(model=teacher_folder, loss=ProjectionKL())})
        module = MultiTeacherDistillModule(options.pop("student", student), **options)
        if ready:
            module.setup("fit")
            module.configure_model()
        return module

    return make
