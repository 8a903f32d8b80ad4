"""Random rows before two heads, their scores, and a memory that can be watched."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from fake_vocabularies import STUDENT, TEACHER, V_S, V_T, random_projection
from span_rows import random_labels
from torch import Tensor, nn

from xtoken_pl import ProjectionKL, SpanLoss
from xtoken_pl.batch import RowCuts, SpanBatch
from xtoken_pl.losses import SpanBlock, SpanScores
from xtoken_pl.models import Head
from xtoken_pl.models.logit_transform import LogitTransform
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.tasks import HiddenRows, RowScores, TeacherTask

H, N = 5, 40
ROW_BYTES = 4 * (V_S + V_T)
NOTHING_KEPT, ALL_KEPT = 10 * ROW_BYTES, 1e6


class Rows:
    """Random rows of both sides, one span a row, heads padded beyond their vocabularies, a student's bias."""

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        num_rows: int = N,
        seed: int = 0,
        transform: LogitTransform | None = None,
    ) -> None:
        self.transform = transform
        generator = torch.Generator().manual_seed(seed)
        spans = torch.arange(num_rows)
        ones = torch.ones_like(spans)
        self.spans = SpanBatch(spans, ones, spans, ones, spans, spans)
        self.student_layer = self._layer(V_S + 3, generator, dtype, bias=True)
        self.teacher_layer = self._layer(V_T + 2, generator, dtype, bias=False).requires_grad_(False)
        self.hidden = torch.randn(num_rows, H, generator=generator, dtype=dtype).requires_grad_()
        self.teacher_hidden = torch.randn(num_rows, H, generator=generator, dtype=dtype)
        self.labels, self.teacher_labels = random_labels(num_rows, V_S, 1), random_labels(num_rows, V_T, 2)

    @staticmethod
    def _layer(size: int, generator: torch.Generator, dtype: torch.dtype, *, bias: bool) -> nn.Linear:
        layer = nn.Linear(H, size, bias=bias, dtype=dtype)
        for parameter in layer.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
        return layer

    def evaluate(self, memory: LogitMemory, loss: SpanLoss | None = None, temperature: float = 1.0) -> RowScores:
        if loss is None:
            loss = ProjectionKL()
            loss.bind(STUDENT, TEACHER, random_projection())
        student = HiddenRows(self.hidden, self.labels, Head(self.student_layer, V_S, None, self.transform))
        teacher = HiddenRows(
            self.teacher_hidden, self.teacher_labels, Head(self.teacher_layer, V_T, None, self.transform)
        )
        tasks = {"t": TeacherTask(teacher, self.spans, loss, temperature)}
        return evaluate_rows(student, tasks, RowCuts.from_spans(len(self.hidden), {"t": self.spans}), memory)

    @property
    def inputs(self) -> list[Tensor]:
        return [self.hidden, self.student_layer.weight, self.student_layer.bias]

    def gradients(self, scores: RowScores, **options: Any) -> tuple[Tensor, ...]:
        weights = torch.linspace(0.5, 1.5, len(self.hidden), dtype=torch.float64)
        total = (weights * scores.token_nats).sum() + (weights.flip(0) * scores.spans["t"].loss).sum()
        return torch.autograd.grad(total, [x for x in self.inputs if x.requires_grad], **options)


def assert_equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], atol: float = 1e-10) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=atol, atol=atol)


class Unlearnable(SpanLoss):
    """Says the same of every span, whatever the student does."""

    def forward(self, block: SpanBlock) -> SpanScores:
        ones = torch.ones(len(block.student.first), dtype=block.student.log_probs.dtype)
        return SpanScores(ones, ones, None)


class WatchedMemory(LogitMemory):
    """Notes which matrices it made and which it has not got back."""

    def __init__(self, budget: float) -> None:
        super().__init__(budget)
        self.made: list[weakref.ref[Tensor]] = []
        self.lent: dict[int, weakref.ref[Tensor]] = {}

    def take(self, num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        matrix = super().take(num_rows, width, dtype, device)
        if all(known() is not matrix for known in self.made):
            self.made.append(weakref.ref(matrix))
        self.lent[id(matrix)] = weakref.ref(matrix)
        return matrix

    def give(self, *matrices: Tensor) -> None:
        for matrix in matrices:
            del self.lent[id(matrix)]
        super().give(*matrices)

    @property
    def alive(self) -> list[Tensor]:
        """The matrices that exist, lent or free."""
        return [matrix for known in self.made if (matrix := known()) is not None]
