"""Windows with what a cache stores of their spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from xtoken_pl.batch import SpanArrays, cached_column
from xtoken_pl.data.order import PaddedWindows


class StoredSpans(Protocol):
    """The stored spans of a split's windows; see :class:`xtoken_pl.teachers.cache.reader.CachedSplit`."""

    def read(self, index: int, window: Mapping[str, Any]) -> SpanArrays:
        """What is stored of window ``index``."""


class SpanStore(Protocol):
    """A cache of one teacher; see :class:`xtoken_pl.teachers.cache.reader.TeacherCache`."""

    def split(self, name: str, windows: Dataset, sequence_length: int) -> StoredSpans:
        """The stored spans of a split's windows."""


class CachedWindows(TorchDataset):
    """Windows with what is stored of their spans.

    Args:
        windows: Of a split.
        cached: By teacher.
    """

    def __init__(self, windows: PaddedWindows, cached: Mapping[str, StoredSpans]) -> None:
        self._windows = windows
        self._cached = cached

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._with_rows(index, self._windows[index])

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Several windows at once, as a data loader asks for them."""
        windows = self._windows.__getitems__(indices)
        return [self._with_rows(index, window) for index, window in zip(indices, windows, strict=True)]

    def _with_rows(self, index: int, window: dict[str, Any]) -> dict[str, Any]:
        rows = {cached_column(name): split.read(index, window) for name, split in self._cached.items()}
        return {**window, **rows}
