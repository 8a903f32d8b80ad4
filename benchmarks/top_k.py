"""How far ``teacher_top_k`` moves loss and gradient, on real models: ``python -m benchmarks.top_k``.

Gemma-3-270M (262,144 tokens) teaches SmolLM2-135M (49,152 tokens), both pretrained, on text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from benchmarks.measure import Figure, run
from benchmarks.pair import TEXT
from xtoken_pl import HybridKL, MatchedRowLoss, MultiTeacherDistillModule, ProjectionKL, SpanLoss, Student, Teacher
from xtoken_pl.batch import RowCuts
from xtoken_pl.cli.prepare import prepare
from xtoken_pl.data import Windower, collate
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.tasks import HiddenRows, TeacherTask

_KS = (64, 256, 1024, 8192)
_NUM_WINDOWS, _LENGTH = 2, 256


def figures() -> Iterator[Figure]:
    """Relative change of the mean loss, and of the gradient of the student's hidden states (2-norm)."""
    prepare(teachers=["smollm2", "gemma3"])
    for kind in (ProjectionKL, HybridKL):
        student, task, cuts = _rows(kind())
        exact_loss, exact_gradient = _evaluate(student, task, cuts)
        for k in _KS:
            cast(MatchedRowLoss, task.loss).teacher_top_k = k
            loss, gradient = _evaluate(student, task, cuts)
            moved = (gradient - exact_gradient).norm() / exact_gradient.norm()
            note = f"{loss:.4f} against {exact_loss:.4f} nats per span"
            yield Figure(
                f"{kind.__name__}, k = {k:,}: change of the loss", 100 * (loss / exact_loss - 1), "%", note=note
            )
            yield Figure(f"{kind.__name__}, k = {k:,}: change of the gradient", 100 * moved.item(), "%")


def _evaluate(student: HiddenRows, task: TeacherTask, cuts: RowCuts) -> tuple[float, Tensor]:
    loss = evaluate_rows(student, {"gemma3": task}, cuts, LogitMemory(0.5e9)).spans["gemma3"].loss.mean()
    (gradient,) = torch.autograd.grad(loss, student.hidden)
    return loss.item(), gradient


def _rows(loss: MatchedRowLoss) -> tuple[HiddenRows, TeacherTask, RowCuts]:
    module = MultiTeacherDistillModule(
        Student(model="quickstart/teacher-smollm2"), {"gemma3": Teacher(model="quickstart/teacher-gemma3", loss=loss)}
    )
    module.setup("fit")
    module.configure_model()
    columns = Windower(*module.vocabularies(), _LENGTH)([TEXT])
    windows = [{key: column[index] for key, column in columns.items()} for index in range(_NUM_WINDOWS)]
    batch = collate(windows, ["gemma3"])
    view = batch.teachers["gemma3"]
    with torch.no_grad():
        student, teacher = module.student_rows(batch.student), module.teacher_rows("gemma3", view)
    student.hidden.requires_grad_()
    return student, TeacherTask(teacher, view.spans, cast(SpanLoss, module.losses["gemma3"])), batch.cuts


if __name__ == "__main__":
    run(figures)
