"""Shares the rows of a batch out over the processes of a tensor-parallel group, which all have the same hidden states.

Each process computes the complete logits of its rows, so that no loss has to know of the others, and the products of
the heads are divided among them. The scores are exchanged, numbers by row and by span, and the gradient of the hidden
states, but no logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from xtoken_pl.batch import RowCuts


class Shares:
    """This process's share of the rows of each batch.

    Args:
        group: Processes that have the same rows; None if no other process has them.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        self._group = group
        #: Number of processes that share the rows.
        self.number = 1 if group is None else group.size()

    def own(self, cuts: RowCuts) -> RowCuts:
        """Returns the cuts of the rows that this process scores."""
        return cuts if self._group is None else cuts.share(self._group.rank(), self.number)

    def add_up(self, vectors: Sequence[Tensor]) -> None:
        """Replaces vectors or matrices, which are 0 at the rows of others, by their sums over the group."""
        if self._group is None or not vectors:
            return
        for dtype in dict.fromkeys(vector.dtype for vector in vectors):
            alike = [vector for vector in vectors if vector.dtype == dtype]
            total = alike[0] if len(alike) == 1 else torch.cat(alike)
            total = total.byte() if dtype == torch.bool else total
            torch.distributed.all_reduce(total, group=self._group)
            for vector, part in zip(alike, total.split([len(vector) for vector in alike]), strict=True):
                if part.data_ptr() != vector.data_ptr():
                    vector.copy_(part)

    def scaled(self, gradient: Tensor) -> Tensor:
        """Returns the gradient of this share in weights that all processes hold, times the number of shares.

        Gradients are averaged over all processes, as if each had that of all its rows.
        """
        return gradient if self._group is None else gradient * self.number
