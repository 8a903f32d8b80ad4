"""A module with two teachers under a weighting, a batch of it, and the weights that it gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, write_model
from torch import Tensor

from xtoken_pl import MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TokenKL, Weighting
from xtoken_pl.batch import DistillBatch
from xtoken_pl.data import Windower, collate
from xtoken_pl.weighting import TeacherScores, teacher_scores

NAMES = ["other", "same"]
ALPHAS = {"other": 0.3, "same": 0.6}
MakeModule = Callable[..., MultiTeacherDistillModule]


def write_folders(root: Path) -> dict[str, str]:
    """Writes the models of a student and of both teachers."""
    return {
        "student": write_model(root / "student", packing_tokenizer(), seed=1),
        "other": write_model(root / "other", reversing_tokenizer(), seed=2),
        "same": write_model(root / "same", packing_tokenizer(), seed=3, scale=12.0),
    }


def gradient(module: MultiTeacherDistillModule, loss: Tensor) -> Tensor:
    """Gradient of a loss in the student's parameters."""
    module.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in module.student.parameters() if p.grad is not None])


def make_module(
    folders: dict[str, str], weighting: Weighting, *, temperature: float = 1.0, logits_memory: float = 2e-4
) -> MultiTeacherDistillModule:
    options: Any = {"dtype": "float64", "temperature": temperature}
    teachers = {
        "other": Teacher(model=folders["other"], loss=ProjectionKL(), alpha=ALPHAS["other"], **options),
        "same": Teacher(model=folders["same"], loss=TokenKL(), alpha=ALPHAS["same"], **options),
    }
    student = Student(model=folders["student"], dtype="float64")
    module = MultiTeacherDistillModule(student, teachers, weighting, logits_memory=logits_memory)
    module.setup("fit")
    module.configure_model()
    return module


def batch_for(module: MultiTeacherDistillModule) -> DistillBatch:
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([text[:250] for text in TEXTS[:3]])
    # The last window ends with eos, which has no bytes.
    rows = [{key: column[index] for key, column in columns.items()} for index in (0, 2, -1)]
    return collate(rows, NAMES)


def views_of(module: MultiTeacherDistillModule, batch: DistillBatch) -> dict[str, TeacherScores]:
    return teacher_scores(module.score(batch), batch, module.domain_alphas, module.student_num_bytes)


def weights_of(module: MultiTeacherDistillModule, batch: DistillBatch) -> dict[str, Tensor]:
    return cast(dict[str, Tensor], module.weighting(views_of(module, batch), lambda values: values))
