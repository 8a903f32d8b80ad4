"""In which order windows are read: a function of the seed and the epoch, whatever the processes and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler
from torch.utils.data import Dataset as TorchDataset

from xtoken_pl.batch import LOSS_MASK, NO_WINDOW, STUDENT_IDS, starts_column, teacher_columns
from xtoken_pl.data.worker_errors import raise_carried

# N windows, W processes, b windows of a batch on each of them, W b windows of a global batch


class Position(NamedTuple):
    """Where a run stands: batches of an epoch that are done."""

    epoch: int
    num_batches: int


class GlobalBatchSampler(DistributedSampler[int]):
    r"""Gives each process its share of every global batch.

    The N windows are put in one order, and cut into :math:`\lceil N / W b \rceil` global batches. Process r takes
    every W-th window of each, from the r-th on. The i-th global batch thus holds the same windows for all W and b of
    the same product.

    The last global batch may be smaller. It is shared out in the same way, no window is left out or counted twice, and
    a process that gets nothing of it gets :data:`NO_WINDOW` instead, so that all take the same number of steps.

    Args:
        num_windows: N.
        batch_size: b.
        num_processes: W.
        rank: r, in [0, W).
        seed: With the epoch it decides the order; None for that of the data set.
        position: Tells where a run stands when an iteration begins; None for the start of the epoch of ``set_epoch``.
    """

    def __init__(
        self,
        num_windows: int,
        batch_size: int,
        *,
        num_processes: int = 1,
        rank: int = 0,
        seed: int | None = None,
        position: Callable[[], Position] | None = None,
    ) -> None:
        super().__init__(
            range(num_windows),  # type: ignore[arg-type]  # only its length is used
            num_replicas=num_processes,
            rank=rank,
            shuffle=seed is not None,
            seed=seed or 0,
        )
        self.num_windows = num_windows
        self.batch_size = batch_size
        self.position = position

    @property
    def global_batch_size(self) -> int:
        """W b, windows."""
        return self.num_replicas * self.batch_size

    def __len__(self) -> int:
        """Windows of this process in a whole epoch, wherever an iteration begins."""
        whole, rest = divmod(self.num_windows, self.global_batch_size)
        return whole * self.batch_size + (max(1, len(range(self.rank, rest, self.num_replicas))) if rest else 0)

    def __iter__(self) -> Iterator[int]:
        position = self.position() if self.position is not None else Position(self.epoch, 0)
        order = self._order(position.epoch)[position.num_batches * self.global_batch_size :]
        mine = order[self.rank :: self.num_replicas].tolist()
        yield from mine
        rest = len(order) % self.global_batch_size
        if 0 < rest <= self.rank:
            yield NO_WINDOW

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.num_windows)
        return np.random.default_rng((self.seed, epoch)).permutation(self.num_windows)


class PaddedWindows(TorchDataset[dict[str, Any]]):
    """Stored windows, and one without anything to learn at :data:`NO_WINDOW`."""

    def __init__(self, windows: Dataset, teachers: Sequence[str]) -> None:
        self.windows = windows
        self.blank: dict[str, Any] = {STUDENT_IDS: [0], LOSS_MASK: [0]}
        for ids, spans in map(teacher_columns, teachers):
            self.blank |= {ids: [0], spans: []}
        starts = map(starts_column, ("", *teachers))
        self.blank |= {column: [0] for column in starts if column in windows.column_names}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.blank if index == NO_WINDOW else self.windows[index]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The rows of a batch, read at once."""
        stored = [index for index in indices if index != NO_WINDOW]
        rows = iter(self.windows.__getitems__(stored) if stored else [])
        return [self.blank if index == NO_WINDOW else next(rows) for index in indices]


class OrderedLoader(DataLoader[Any]):
    """A loader whose iteration begins when its first batch is asked for.

    Lightning makes the iterator before it has read the progress from a checkpoint; workers would start to fetch the
    first batches of the first epoch. Its generator is its own: an iteration draws nothing from torch's global one.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"generator": torch.Generator(), **options})

    def __iter__(self) -> Any:
        yield from raise_carried(super().__iter__())

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the sampler asks where the run stands. Without it Lightning warns that a run cannot go on."""
        return {}

    def load_state_dict(self, _: dict[str, Any]) -> None:
        """Nothing to load."""
