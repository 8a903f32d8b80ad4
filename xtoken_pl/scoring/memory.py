"""Divides a memory budget among logits, and lends memory for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: Tensors of a piece's size that exist at the same time, for the hungriest loss (measured).
_PIECE_TENSORS = 16


class _Limits(NamedTuple):
    """Shares of the budget for blocks and pieces, sizes beyond which a kind of device gains nothing, and a budget."""

    block_share: float
    block_rows: int
    piece_share: float  # so that something is left to be kept
    piece_bytes: int  # of one tensor
    default_budget: float


#: A CPU multiplies hardly faster with more rows than that. A little above 256: 512 rows, cut between spans, are two
#: blocks. Larger pieces leave its cache, and get fresh pages for every tensor; small ones cost it little.
_CPU = _Limits(block_share=0.9, block_rows=272, piece_share=0.25, piece_bytes=2**23, default_budget=0.5e9)
#: A GPU needs large pieces, or starting a kernel takes longer than the kernel: reading and writing 64 MiB takes an H100
#: 40 microseconds. A head's products are limited by FLOP from some 350 rows on, those of the head's gradient, which is
#: added in float32, from some 2,100; larger blocks gain nothing, but leave less to be kept. The default budget has room
#: for over 1,000 rows of logits, and pieces of 64 MB, with two teachers and vocabularies of up to 200,000 tokens.
_GPU = _Limits(block_share=0.5, block_rows=2**12, piece_share=0.5, piece_bytes=2**27, default_budget=2e9)


def _limits(kind: str) -> _Limits:
    """Limits of a type of device; any that is not a CPU is taken for a GPU."""
    return _CPU if kind == "cpu" else _GPU


@dataclass(frozen=True)
class BlockSizes:
    """Numbers of rows whose logits, and what losses derive from them, fit into a memory budget.

    The heads are multiplied with a *block* of rows, as large as fits, since a large product is efficient. Losses
    see a *piece* of it at a time, since they need many tensors of its size. Where the budget has room left, what the
    backward pass needs is *kept*, and the logits of these rows are not computed again.

    Attributes:
        block_rows: Rows of each side in a block.
        piece_rows: Rows of each side in a piece.
        kept_rows: Student rows that can be kept.
    """

    block_rows: int
    piece_rows: int
    kept_rows: int

    @classmethod
    def from_budget(
        cls,
        budget: float,
        num_rows: int,
        student_size: int,
        teacher_sizes: Sequence[int],
        dtype: torch.dtype,
        kind: str,
        known_sizes: Sequence[int] = (),
        hidden_sizes: Sequence[int] = (),
        logits_dtype: torch.dtype | None = None,
    ) -> BlockSizes:
        """Divides ``budget`` bytes among blocks, pieces, and what is kept.

        Args:
            budget: Memory budget in bytes.
            num_rows: Rows of the batch on the side that has most.
            student_size, teacher_sizes: Vocabulary sizes.
            dtype: Dtype that losses are computed in.
            kind: Type of the device, such as ``cpu`` or ``cuda``.
            known_sizes: Vocabulary sizes of teachers with known rows, which have no logits.
            hidden_sizes: The student's hidden size, once for each loss that reads hidden states.
            logits_dtype: Dtype of a block's logits; None for ``dtype``.
        """
        limits = _limits(kind)
        row = (logits_dtype or dtype).itemsize * (student_size + sum(teacher_sizes))
        block_rows = min(_at_least_one(budget * limits.block_share / row), limits.block_rows)
        left = budget - min(block_rows, num_rows) * row
        piece_row = dtype.itemsize * max(student_size, *teacher_sizes, *known_sizes, 1)
        piece = min(min(left, budget * limits.piece_share) / _PIECE_TENSORS, limits.piece_bytes)
        piece_rows = min(block_rows, _at_least_one(piece / piece_row))
        left -= _PIECE_TENSORS * piece_rows * piece_row
        # Of each kept row: the probabilities, and the gradients of each teacher's loss.
        kept_row = dtype.itemsize * student_size * (1 + len(teacher_sizes) + len(known_sizes))
        kept_row += dtype.itemsize * sum(hidden_sizes)
        return cls(block_rows, piece_rows, max(0, int(left / kept_row)))


class LogitMemory:
    """Budget for logits and for what losses derive from them; lends matrices, to reuse their memory.

    Fresh pages cost a CPU as much as a quarter of a head's product.

    Args:
        budget: Memory budget in bytes; None for a default that depends on the type of the device.
    """

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self._free: list[Tensor] = []

    def budget_on(self, kind: str) -> float:
        """Returns the budget in bytes on a type of device, such as ``cpu`` or ``cuda``; 2 GB on a GPU by default."""
        return _limits(kind).default_budget if self.budget is None else self.budget

    def beside(self) -> LogitMemory:
        """Returns memory of at most 0.5 GB for monitors: training's own holds matrices for its batches."""
        default = _CPU.default_budget
        return LogitMemory(default if self.budget is None else min(self.budget, default))

    def take(self, num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Lends a matrix ``[num_rows, width]``, or with more rows, not initialized, until it is given back."""
        wanted = (width, dtype, device)
        for index, matrix in enumerate(self._free):
            if (matrix.shape[1], matrix.dtype, matrix.device) == wanted and len(matrix) >= num_rows:
                return self._free.pop(index)
        # What is free and did not fit belongs to batches of another shape.
        self._free = [matrix for matrix in self._free if (matrix.shape[1], matrix.dtype, matrix.device) != wanted]
        with torch.inference_mode(mode=False):  # or a validation step's memory could not be used for training
            return torch.empty(num_rows, width, dtype=dtype, device=device)

    def give(self, *matrices: Tensor) -> None:
        """Takes matrices back, as many as the budget allows."""
        for matrix in matrices:
            if sum(free.nbytes for free in self._free) + matrix.nbytes <= self.budget_on(matrix.device.type):
                self._free.append(matrix)

    def __deepcopy__(self, _: object) -> LogitMemory:
        return LogitMemory(self.budget)

    def __getstate__(self) -> dict[str, object]:
        return {"budget": self.budget, "_free": []}


def _at_least_one(value: float) -> int:
    return max(1, int(value))
