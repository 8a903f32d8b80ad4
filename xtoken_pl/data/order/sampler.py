"""Order in which windows are read: a function of the seed and the epoch, for any number of processes and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, DistributedSampler

from xtoken_pl.batch import NO_WINDOW
from xtoken_pl.data.order.whole_steps import whole_steps
from xtoken_pl.data.worker_errors import raise_carried

# N windows, W processes, b windows of a batch on each of them, W b windows of a global batch


class Position(NamedTuple):
    """Position of a run: its epoch, and the number of batches of that epoch that are done."""

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
        seed: Seed of the order, together with the epoch; None for the order of the data set.
        order: Returns the windows of an epoch in their order, from the seed and the epoch; by default all are shuffled.
        position: Returns the position of the run when an iteration begins; None for the start of the epoch given to
            ``set_epoch``.
    """

    def __init__(
        self,
        num_windows: int,
        batch_size: int,
        *,
        num_processes: int = 1,
        rank: int = 0,
        seed: int | None = None,
        order: Callable[[int, int], NDArray[np.int64]] | None = None,
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
        self.order = order
        self.position = position

    @property
    def global_batch_size(self) -> int:
        """Number of windows of a global batch, W b."""
        return self.num_replicas * self.batch_size

    def __len__(self) -> int:
        """Number of windows of this process in a whole epoch, wherever an iteration begins."""
        whole, rest = divmod(self.num_windows, self.global_batch_size)
        return whole * self.batch_size + (max(1, len(range(self.rank, rest, self.num_replicas))) if rest else 0)

    def __iter__(self) -> Iterator[int]:
        position = self.position() if self.position is not None else Position(self.epoch, 0)
        order = self._order(position.epoch)[position.num_batches * self.global_batch_size :]
        yield from order[self.rank :: self.num_replicas].tolist()
        if 0 < len(order) % self.global_batch_size <= self.rank:
            yield NO_WINDOW

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.num_windows)
        if self.order is not None:
            return self.order(self.seed, epoch)
        return np.random.default_rng((self.seed, epoch)).permutation(self.num_windows)


class OrderedLoader(DataLoader[Any]):
    """DataLoader whose iteration begins when its first batch is requested.

    Lightning creates the iterator before it has read the progress from a checkpoint; workers would start to fetch the
    first batches of the first epoch. It has its own generator: an iteration draws nothing from torch's global one.

    Args:
        windows: The windows.
        num_workers: Number of workers.
        step_sizes: Yields the number of batches of each optimizer step, when an iteration begins.
        options: Other options of DataLoader.
    """

    def __init__(
        self, windows: Any, *, num_workers: int, step_sizes: Callable[[], Iterable[int]] = tuple, **options: Any
    ) -> None:
        own: dict[str, Any] = {"generator": torch.Generator(), "persistent_workers": num_workers > 0}
        super().__init__(windows, num_workers=num_workers, **own, **options)
        self.step_sizes = step_sizes

    def __iter__(self) -> Any:
        yield from whole_steps(raise_carried(super().__iter__()), self.step_sizes())

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing, since the sampler asks for the position; without this method Lightning warns on resume."""
        return {}

    def load_state_dict(self, _: dict[str, Any]) -> None:
        """Loads nothing."""
