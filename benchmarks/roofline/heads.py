"""Heads and losses of a step: runs the evaluation that trains on tensors that only have shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from benchmarks.roofline.recorder import Operation, Recorder
from xtoken_pl import ULD, ProjectionKL, SpanLoss, TokenKL
from xtoken_pl.batch import RowCuts, SpanBatch
from xtoken_pl.losses.partitioned import PartitionedLoss
from xtoken_pl.models.head import Head
from xtoken_pl.projection.sparse import SparseProduct
from xtoken_pl.scoring.evaluation import Evaluation
from xtoken_pl.scoring.memory import BlockSizes, LogitMemory
from xtoken_pl.scoring.shares import Shares
from xtoken_pl.scoring.tasks import HiddenRows, TeacherTask

# N rows of a batch, the same number on every side

#: Tensors that only have shapes; for block sizes and sorts, any device but a CPU is a GPU.
_DEVICE = "meta"
#: Rows of which the first two are one span, so that losses merge spans as they do in texts; all others are spans.
_GROUP = 10


class _ShapesOnly(Evaluation):
    """An evaluation on a device that has no autocast."""

    def _full_precision(self) -> Any:
        return nullcontext()


@dataclass(frozen=True)
class Side:
    """A model's head: vocabulary size V without padding, and hidden size H."""

    vocabulary_size: int
    hidden_size: int


@dataclass(frozen=True)
class Tables:
    """Sizes of what a loss knows of two vocabularies.

    Attributes:
        common: Pairs of common tokens of GOLD or H-KL.
        entries: Entries of W.
        reached: Teacher tokens that W reaches.
    """

    common: int = 0
    entries: int = 0
    reached: int = 0


@dataclass(frozen=True)
class HeadWork:
    """Operations of the heads and losses of one batch.

    Attributes:
        sizes: Rows of a block and of a piece.
        num_blocks: Number of blocks.
        counts: How often each operation runs.
    """

    sizes: BlockSizes
    num_blocks: int
    counts: Mapping[Operation, float]


def head_work(
    num_rows: int,
    student: Side,
    teachers: Mapping[str, tuple[Side, SpanLoss, Tables]],
    logits_memory: int,
    dtype: torch.dtype = torch.bfloat16,
) -> HeadWork:
    """Records the evaluation of one batch as on a GPU, forward and backward.

    Blocks are alike, so that those of one and of two blocks are recorded, and the difference is counted for each
    further one.

    Args:
        num_rows: N.
        student: The student's head.
        teachers: Heads, losses that are not bound, and tables, by name.
        logits_memory: Memory of the blocks in bytes.
        dtype: Precision of the products.
    """
    sizes = BlockSizes.from_budget(
        logits_memory,
        num_rows,
        student.vocabulary_size,
        [side.vocabulary_size for side, _, _ in teachers.values()],
        torch.float32,
        _DEVICE,
        logits_dtype=dtype,
    )
    num_blocks = math.ceil(num_rows / sizes.block_rows)
    if num_blocks <= 2 or sizes.kept_rows >= math.ceil(num_rows / num_blocks):  # or some are kept
        return HeadWork(sizes, num_blocks, Counter(_record(num_rows, student, teachers, logits_memory, dtype)))
    rows = math.ceil(num_rows / num_blocks)
    one, two = (Counter(_record(count * rows, student, teachers, logits_memory, dtype)) for count in (1, 2))
    counts = {op: one[op] + (num_blocks - 1) * (two[op] - one[op]) for op in one | two}
    return HeadWork(sizes, num_blocks, counts)


def _record(
    num_rows: int,
    student: Side,
    teachers: Mapping[str, tuple[Side, SpanLoss, Tables]],
    logits_memory: int,
    dtype: torch.dtype,
) -> list[Operation]:
    rows_before = np.arange(num_rows + 1)
    rows_before = rows_before[rows_before % _GROUP != 1]
    spans_before = rows_before - (rows_before + _GROUP - 2) // _GROUP
    cuts = RowCuts(rows_before, dict.fromkeys(teachers, spans_before), dict.fromkeys(teachers, rows_before))
    losses = {name: _bound(loss, student, side, tables) for name, (side, loss, tables) in teachers.items()}
    rows = _rows(student, num_rows, dtype, trains=True)
    of_spans, of_rows = (torch.zeros(n, dtype=torch.long, device=_DEVICE) for n in (spans_before[-1], num_rows))
    spans = SpanBatch(of_spans, of_spans, of_spans, of_spans, of_rows, of_rows)
    tasks: dict[str, TeacherTask] = {}
    for name, (side, _, _) in teachers.items():
        loss = losses[name].train().to(_DEVICE)
        tasks[name] = TeacherTask(_rows(side, num_rows, dtype, trains=False), spans, loss)
    with patch("torch.is_autocast_enabled", return_value=True), patch("torch.get_autocast_dtype", return_value=dtype):
        evaluation = _ShapesOnly(rows, tasks, cuts, LogitMemory(logits_memory), Shares(None))
    with patch("torch.is_autocast_enabled", return_value=False), Recorder() as recorder:
        scores = evaluation.score()
        losses_of_spans = [part.loss for part in scores.spans.values()]
        evaluation.gradients(scores.token_nats, losses_of_spans, [x is not None for x in evaluation.inputs])
    return recorder.operations


def _rows(side: Side, num_rows: int, dtype: torch.dtype, *, trains: bool) -> HiddenRows:
    layer = nn.Linear(1, 1, bias=False, device=_DEVICE)
    with torch.device(_DEVICE):
        shape = (side.vocabulary_size, side.hidden_size)
        layer.weight = nn.Parameter(torch.empty(shape, dtype=torch.float32 if trains else dtype), requires_grad=trains)
        hidden = torch.empty(num_rows, side.hidden_size, dtype=dtype).requires_grad_(trains)
        labels = torch.zeros(num_rows, dtype=torch.long)
    return HiddenRows(hidden, labels, Head(layer, side.vocabulary_size, None))


def _bound(loss: SpanLoss, student: Side, teacher: Side, tables: Tables) -> SpanLoss:
    """A copy of a loss with tables of the given sizes; their content has no part in the cost."""
    loss = deepcopy(loss)
    if isinstance(loss, PartitionedLoss):
        for name, size in (
            ("student_common", tables.common),
            ("teacher_common", tables.common),
            ("student_rest", student.vocabulary_size - tables.common),
            ("teacher_rest", teacher.vocabulary_size - tables.common),
            ("counterpart", student.vocabulary_size),
        ):
            loss.register_buffer(name, torch.zeros(size, dtype=torch.long), persistent=False)
    elif isinstance(loss, ProjectionKL):
        entries = torch.arange(tables.entries)
        source, target = entries % student.vocabulary_size, entries % tables.reached
        weights = torch.ones(tables.entries)
        loss.product = SparseProduct(source, target, student.vocabulary_size, tables.reached, weights)
        loss.register_buffer("reached", torch.arange(tables.reached), persistent=False)
    elif isinstance(loss, ULD):
        loss.register_buffer("counterpart", torch.zeros(student.vocabulary_size, dtype=torch.long), persistent=False)
    elif not isinstance(loss, TokenKL):
        raise ValueError(f"the roofline knows P-KL, H-KL, GOLD, ULD and KL, got {type(loss).__name__}")
    return loss
