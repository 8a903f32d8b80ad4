"""How far ``teacher_top_k`` moves loss and gradient, on real models: ``python -m benchmarks.top_k``.

Two pairs of pretrained models, on text. Gemma-3-270M (262,144 tokens) teaches SmolLM2-135M (49,152 tokens). For
TokenKL, SmolLM2-135M teaches a copy of itself with Gaussian noise on every weight matrix; BytePrefixKL runs on both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from benchmarks.measure import Figure, run
from benchmarks.pair import TEXT
from xtoken_pl import GOLD, BytePrefixKL, HybridKL, MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TokenKL
from xtoken_pl.batch import RowCuts
from xtoken_pl.cli.prepare import prepare
from xtoken_pl.data import Windower, collate
from xtoken_pl.losses.teacher_tokens import TopKLoss
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.tasks import HiddenRows, TeacherTask

_KS = (16, 64, 256, 1024, 8192)
_NUM_WINDOWS, _LENGTH = 2, 256
#: Standard deviation of the noise, as a share of each weight matrix's own.
_NOISE = 0.1
#: Losses by teacher.
_LOSSES: dict[str, tuple[type[TopKLoss], ...]] = {
    "gemma3": (ProjectionKL, HybridKL, GOLD, BytePrefixKL),
    "smollm2": (TokenKL, BytePrefixKL),
}


def figures() -> Iterator[Figure]:
    """Relative change of the mean loss, and of the gradient of the student's hidden states (2-norm)."""
    prepare(teachers=["smollm2", "gemma3"])
    for teacher, kinds in _LOSSES.items():
        for kind in kinds:
            loss = kind()
            name = f"{kind.__name__} from SmolLM2" if teacher == "smollm2" else kind.__name__
            student, task, cuts = _rows(teacher, loss)
            exact_loss, exact_gradient = _evaluate(student, task, cuts)
            for k in _KS:
                cast(TopKLoss, task.loss).teacher_top_k = k
                value, gradient = _evaluate(student, task, cuts)
                moved = (gradient - exact_gradient).norm() / exact_gradient.norm()
                label, note = f"{name}, k = {k:,}", f"{value:.4f} against {exact_loss:.4f} nats per span"
                yield Figure(f"{label}: change of the loss", 100 * (value / exact_loss - 1), "%", note=note)
                yield Figure(f"{label}: change of the gradient", 100 * moved.item(), "%")


def _evaluate(student: HiddenRows, task: TeacherTask, cuts: RowCuts) -> tuple[float, Tensor]:
    loss = evaluate_rows(student, {"t": task}, cuts, LogitMemory(0.5e9)).spans["t"].loss.mean()
    (gradient,) = torch.autograd.grad(loss, student.hidden)
    return loss.item(), gradient


def _rows(teacher: str, loss: TopKLoss) -> tuple[HiddenRows, TeacherTask, RowCuts]:
    module = MultiTeacherDistillModule(
        Student(model="quickstart/teacher-smollm2"), {"t": Teacher(model=f"quickstart/teacher-{teacher}", loss=loss)}
    )
    module.setup("fit")
    module.configure_model()
    if teacher == "smollm2":
        _add_noise(module)
    columns = Windower(*module.vocabularies(), _LENGTH)([TEXT])
    windows = [{key: column[index] for key, column in columns.items()} for index in range(_NUM_WINDOWS)]
    batch = collate(windows, ["t"], module.planners())
    with torch.no_grad():
        student, task = module.student_rows(batch.student), module.teacher_task("t", batch.teachers["t"])
    student.hidden.requires_grad_()
    return student, task, batch.cuts


@torch.no_grad()
def _add_noise(module: MultiTeacherDistillModule) -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in module.student.parameters():
        if weight.ndim > 1:
            weight += _NOISE * weight.std() * torch.randn(weight.shape, generator=generator)


if __name__ == "__main__":
    run(figures)
