"""How a memory budget is spent on logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Tensors of a piece's size that exist at the same time, for the hungriest loss (measured).
_PIECE_TENSORS = 16
_PIECE_SHARE, _BLOCK_SHARE = 0.25, 0.6
#: Larger pieces gain nothing: on a CPU they leave the cache, and get fresh pages for every tensor.
_LARGEST_PIECE = {"cpu": 2**23}
_LARGEST_PIECE_ELSEWHERE = 2**27


@dataclass(frozen=True)
class MemoryPlan:
    """How rows are cut so that their logits fit into a budget.

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
    def of(
        cls,
        budget: float,
        num_rows: int,
        student_size: int,
        teacher_sizes: Sequence[int],
        dtype: torch.dtype,
        kind: str,
    ) -> MemoryPlan:
        """Divides ``budget`` bytes among blocks, pieces, and what is kept.

        Args:
            num_rows: Student rows of the batch.
            student_size, teacher_sizes: Of the vocabularies.
            dtype: In which losses are computed.
            kind: Of the device, ``cpu`` or ``cuda``, say.
        """
        row = dtype.itemsize * (student_size + sum(teacher_sizes))
        block_rows = _at_least_one(budget * _BLOCK_SHARE / row)
        piece_row = dtype.itemsize * max(student_size, *teacher_sizes, 1)
        piece = min(budget * _PIECE_SHARE / _PIECE_TENSORS, _LARGEST_PIECE.get(kind, _LARGEST_PIECE_ELSEWHERE))
        piece_rows = min(block_rows, _at_least_one(piece / piece_row))
        # Of each kept row: the probabilities, and the gradient of each teacher's loss.
        kept_row = dtype.itemsize * student_size * (1 + len(teacher_sizes))
        left = budget - min(block_rows, num_rows) * row - _PIECE_TENSORS * piece_rows * piece_row
        return cls(block_rows, piece_rows, max(0, int(left / kept_row)))


class LogitMemory:
    """A budget for logits and what losses derive from them, and the memory that blocks reuse.

    Args:
        budget: Bytes.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self._buffers: dict[str, Tensor] = {}

    def rows(self, name: str, num_rows: int, weight: Tensor) -> Tensor:
        """``[num_rows, V]`` for the product with a head's ``weight`` ``[V, H]``; not initialized.

        Every call with the same name gives the same memory: fresh pages cost a CPU as much as a quarter of the product.
        """
        buffer = self._buffers.get(name)
        fits = (
            buffer is not None
            and (buffer.device, buffer.dtype, buffer.shape[1]) == (weight.device, weight.dtype, len(weight))
            and len(buffer) >= num_rows
        )
        if not fits:
            self._buffers.pop(name, None)
            buffer = self._buffers[name] = weight.new_empty(num_rows, len(weight))
        assert buffer is not None
        return buffer[:num_rows]

    def release(self, name: str) -> None:
        """Leaves the memory of ``name`` to whoever holds it."""
        self._buffers.pop(name, None)


def _at_least_one(value: float) -> int:
    return max(1, int(value))
