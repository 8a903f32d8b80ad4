"""Loaders of stored and of streamed windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from xtoken_pl.batch import Planner
from xtoken_pl.data.cached_windows import CachedWindows, StoredSpans
from xtoken_pl.data.collate import collate
from xtoken_pl.data.order import GlobalBatchSampler, OrderedLoader, PaddedWindows
from xtoken_pl.data.streams import BlockStream
from xtoken_pl.data.worker_errors import CarryingCollate, CarryingDataset


@dataclass(frozen=True)
class Loaders:
    """Makes the loaders of a process.

    Attributes:
        batch_size: Windows of a batch, on each process.
        num_workers: Loader processes.
        teachers: Names of the teachers.
        planners: Planners of batches, by teacher.
        num_processes: Processes that train together.
        rank: Rank of this process.
        pin_memory: Whether batches are copied to page-locked memory.
    """

    batch_size: int
    num_workers: int
    teachers: list[str]
    planners: dict[str, Planner]
    num_processes: int
    rank: int
    pin_memory: bool

    def of_windows(self, windows: Dataset, caches: Mapping[str, StoredSpans], **order: Any) -> OrderedLoader:
        """A loader of stored windows.

        Args:
            windows: Data set of windows.
            caches: What caches store of their spans, by teacher.
            order: ``seed`` and ``position`` of :class:`xtoken_pl.data.order.GlobalBatchSampler`.
        """
        sampler = GlobalBatchSampler(
            len(windows), self.batch_size, num_processes=self.num_processes, rank=self.rank, **order
        )
        cached = CarryingDataset(CachedWindows(PaddedWindows(windows, self.teachers), caches))
        return OrderedLoader(cached, sampler=sampler, persistent_workers=self.num_workers > 0, **self._options())

    def of_stream(self, stream: BlockStream) -> StatefulDataLoader[Any]:
        """A loader of a stream, which knows where it stands."""
        return StatefulDataLoader(stream, generator=torch.Generator(), **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": CarryingCollate(partial(collate, teachers=self.teachers, planners=self.planners)),
            "pin_memory": self.pin_memory,
        }
