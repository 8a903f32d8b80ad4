"""Runs whose teacher may have a cache: modules and data of small models and short texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TextSource

LENGTH = 48


def data_of(root: Path, **options: Any) -> DistillDataModule:
    given: dict[str, Any] = {
        "train": "train.txt",
        "val": "val.txt",
        "sequence_length": LENGTH,
        "batch_size": 4,
    } | options
    for split in ("train", "val"):
        given[split] = given[split] and TextSource(path=str(root / given[split]))
    return DistillDataModule(num_workers=0, **given)


def module_of(root: Path, teachers: dict[str, Teacher], **options: Any) -> MultiTeacherDistillModule:
    return MultiTeacherDistillModule(Student(model=str(root / "student")), teachers, **options)


def split_teacher(root: Path, **options: Any) -> Teacher:
    return Teacher(**{"model": str(root / "split"), "loss": ProjectionKL(), **options})


def set_up(module: MultiTeacherDistillModule, data: DistillDataModule, stage: str = "fit") -> DistillDataModule:
    data.connect(*module.vocabularies(), caches=module.caches)
    data.setup(stage)
    return data
