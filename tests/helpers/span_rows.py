"""Random rows of both sides, spans over them, and the block that a loss gets of them."""

from __future__ import annotations

import torch
from fake_vocabularies import V_S, V_T
from torch import Tensor

from xtoken_pl.losses import SpanBlock
from xtoken_pl.losses.base import SideRows

Span = tuple[int, int, int, int]
Spans = list[Span]

# One-to-one, one-to-many, many-to-one and many-to-many spans, with gaps between them.
SPANS: Spans = [(0, 1, 0, 1), (1, 2, 1, 4), (3, 6, 4, 5), (6, 8, 5, 8), (9, 10, 8, 9)]
NUM_STUDENT_ROWS, NUM_TEACHER_ROWS = 10, 9


def random_rows(num_rows: int, size: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(num_rows, size, generator=generator, dtype=torch.float64)).to(dtype)


def random_labels(num_rows: int, size: int, seed: int) -> Tensor:
    return torch.randint(size, (num_rows,), generator=torch.Generator().manual_seed(seed))


def side(log_probs: Tensor, labels: Tensor, spans: list[tuple[int, int]]) -> SideRows:
    span = torch.full((len(labels),), len(spans))
    for index, (start, end) in enumerate(spans):
        span[start:end] = index
    first = torch.tensor([start for start, _ in spans], dtype=torch.long)
    length = torch.tensor([end - start for start, end in spans], dtype=torch.long)
    return SideRows(log_probs, labels, first, length, span)


def block_of(student: Tensor, teacher: Tensor, labels: tuple[Tensor, Tensor], spans: Spans) -> SpanBlock:
    return SpanBlock(
        side(student.log_softmax(-1), labels[0], [(a, b) for a, b, _, _ in spans]),
        side(teacher.log_softmax(-1), labels[1], [(c, d) for _, _, c, d in spans]),
    )


LABELS = (random_labels(NUM_STUDENT_ROWS, V_S, 3), random_labels(NUM_TEACHER_ROWS, V_T, 4))
