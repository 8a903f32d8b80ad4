"""How far ``teacher_top_k`` moves loss and gradient, on real models: ``python -m benchmarks.top_k``.

Two pairs of pretrained models, on text. Gemma-3-270M (262,144 tokens) teaches SmolLM2-135M (49,152 tokens). For
TokenKL, SmolLM2-135M teaches a copy of itself with Gaussian noise on every weight matrix; BytePrefixKL runs on both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from benchmarks.measure import Figure, run
from benchmarks.pair import batch_of_text
from xtoken_pl import GOLD, BytePrefixKL, HybridKL, MultiTeacherDistillModule, ProjectionKL, Student, Teacher, TokenKL
from xtoken_pl.batch import KnownRows
from xtoken_pl.cli.prepare import prepare
from xtoken_pl.losses.teacher_tokens import TopKLoss
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.tasks import GivenRows, TeacherTask
from xtoken_pl.teachers.cache.row_format import RowFormat
from xtoken_pl.teachers.cache.teacher_rows import ModelRows

_KS, _KNOWN_KS = (16, 64, 256, 1024, 8192), (16, 64, 256)
_NUM_WINDOWS, _LENGTH = 2, 256
#: Standard deviation of the noise, as a share of each weight matrix's own.
_NOISE = 0.1
#: Losses by teacher.
_LOSSES: dict[str, tuple[type[TopKLoss], ...]] = {
    "gemma3": (ProjectionKL, HybridKL, GOLD, BytePrefixKL),
    "smollm2": (TokenKL, BytePrefixKL),
}

#: Losses that compare some of the teacher's tokens: their k are among these, while a known row has the k of all.
_COMPARES_COLUMNS = (ProjectionKL, HybridKL, GOLD)


def figures() -> Iterator[Figure]:
    """Relative change of the mean loss, and of the gradient of the student's hidden states (2-norm)."""
    prepare(teachers=["smollm2", "gemma3"])
    for teacher, kinds in _LOSSES.items():
        for kind in kinds:
            loss = kind()
            name = f"{kind.__name__} from SmolLM2" if teacher == "smollm2" else kind.__name__
            pair = _Pair(teacher, loss)
            exact_loss, exact_gradient = pair.evaluate(pair.task)
            known = [(k, True) for k in _KNOWN_KS if kind in _COMPARES_COLUMNS]
            for k, of_known in [*((k, False) for k in _KS), *known]:
                cast(TopKLoss, pair.task.loss).teacher_top_k = k
                value, gradient = pair.evaluate(pair.known(k) if of_known else pair.task)
                moved = (gradient - exact_gradient).norm() / exact_gradient.norm()
                label = f"{name}, k = {k:,}{' known of each row' if of_known else ''}"
                note = f"{value:.4f} against {exact_loss:.4f} nats per span"
                yield Figure(f"{label}: change of the loss", 100 * (value / exact_loss - 1), "%", note=note)
                yield Figure(f"{label}: change of the gradient", 100 * moved.item(), "%")


class _Pair:
    """A student's rows, and the task of its teacher with a loss."""

    def __init__(self, teacher: str, loss: TopKLoss) -> None:
        specification = Teacher(model=f"quickstart/teacher-{teacher}", loss=loss)
        module = MultiTeacherDistillModule(Student(model="quickstart/teacher-smollm2"), {"t": specification})
        module.setup("fit")
        module.configure_model()
        if teacher == "smollm2":
            _add_noise(module)
        batch = batch_of_text(module, _NUM_WINDOWS, _LENGTH)
        with torch.no_grad():
            self.student, self.task = module.student_rows(batch.student), module.teacher_task("t", batch.teachers["t"])
        self.student.hidden.requires_grad_()
        self._module, self._batch = module, batch

    def known(self, k: int) -> TeacherTask:
        """The task with rows of k tokens, as a server or a cache of every row gives them."""
        view, vocabulary = self._batch.teachers["t"], self._module.teacher_vocabularies["t"]
        num_tokens = int(vocabulary.exists.sum())
        row_format = RowFormat("all", k, 32, num_ids=len(vocabulary), num_tokens=num_tokens)
        model = ModelRows(self._module.loaded_teachers["t"], row_format, 1.0, torch.device("cpu"))
        known = KnownRows.from_windows([model.arrays(view)])
        rows = GivenRows(known, view.tokens.labels, torch.from_numpy(~vocabulary.exists), num_tokens)
        return replace(self.task, rows=rows)

    def evaluate(self, task: TeacherTask) -> tuple[float, Tensor]:
        """The mean loss, and the gradient of the student's hidden states."""
        scores = evaluate_rows(self.student, {"t": task}, self._batch.cuts, LogitMemory(0.5e9))
        loss = scores.spans["t"].loss.mean()
        (gradient,) = torch.autograd.grad(loss, self.student.hidden)
        return loss.item(), gradient


@torch.no_grad()
def _add_noise(module: MultiTeacherDistillModule) -> None:
    generator = torch.Generator().manual_seed(0)
    for weight in module.student.parameters():
        if weight.ndim > 1:
            weight += _NOISE * weight.std() * torch.randn(weight.shape, generator=generator)


if __name__ == "__main__":
    run(figures)
