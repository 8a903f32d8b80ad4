"""A stream of windows to train on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import IterableDataset
from torch.utils.data import IterableDataset as TorchIterableDataset


class EndlessStream(TorchIterableDataset):
    """Reads a shuffled stream again and again, in another order each time.

    It has no end, so that processes whose shares differ in size stop together, at ``max_steps``.
    """

    def __init__(self, windows: IterableDataset) -> None:
        self.windows = windows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = 0
        while True:
            self.windows.set_epoch(epoch)
            yield from self.windows
            epoch += 1
