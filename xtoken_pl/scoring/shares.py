"""Shares the rows of a batch out over the processes of a tensor-parallel group, which all have the same hidden states.

Each process computes the complete logits of its rows, so that no loss has to know of the others, and the products of
the heads are divided among them. The scores are exchanged, numbers by row and by span, and the gradient of the hidden
states, but no logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from xtoken_pl.batch import RowCuts
from xtoken_pl.losses import SpanLoss
from xtoken_pl.scoring.tasks import RowScores, TeacherTask
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.processes import gather

#: Losses that return the same kinds of scores in all processes, with the modes (training or not) that were checked.
_ALIKE: WeakKeyDictionary[SpanLoss, set[bool]] = WeakKeyDictionary()


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

    def has_unchecked(self, tasks: Mapping[str, TeacherTask]) -> bool:
        """Whether the rows are shared, and :meth:`check_alike` has not seen one of the losses in its mode."""
        return self.number > 1 and any(
            task.loss.training not in _ALIKE.get(task.loss, set()) for task in tasks.values()
        )

    def check_alike(self, tasks: Mapping[str, TeacherTask], own: RowScores, of_nothing: RowScores) -> None:
        """Checks that losses score a share with spans and one without alike, since processes add up their scores.

        Every process has to call it.

        Args:
            tasks: Tasks by teacher name.
            own: Scores of this process's share.
            of_nothing: Scores of no rows and no spans.

        Raises:
            UserError: In all processes, if a loss does not.
        """
        kinds = [{name: scores.kinds(name) for name in tasks} for scores in (own, of_nothing)]
        of_all = [found for of_process in gather(kinds, self._group) for found in of_process]
        for name, task in tasks.items():
            first, *others = dict.fromkeys(found[name] for found in of_all)
            if others:
                raise UserError(
                    "with tensor_parallel_size > 1 a loss must score every share of the rows alike, also one without "
                    f"spans, but {name!r} returns {first} and {others[0]}; return vectors of length 0 of the same "
                    "types where there is no span"
                )
            _ALIKE.setdefault(task.loss, set()).add(task.loss.training)

    def scaled(self, gradient: Tensor) -> Tensor:
        """Returns the gradient of this share in weights that all processes hold, times the number of shares.

        Gradients are averaged over all processes, as if each had that of all its rows.
        """
        return gradient if self._group is None else gradient * self.number
