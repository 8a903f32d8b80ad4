"""Windows joined with the teacher rows that a cache stores for their spans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from xtoken_pl.batch import SpanArrays, cached_column
from xtoken_pl.data.order import PaddedWindows


class StoredSpans(Protocol):
    """Cached spans of the windows of a split; see :class:`xtoken_pl.teachers.cache.reader.CachedSplit`."""

    def read(self, index: int, window: Mapping[str, Any]) -> SpanArrays:
        """Returns the cached spans of window ``index``."""


class SpanStore(Protocol):
    """A cache of one teacher; see :class:`xtoken_pl.teachers.cache.reader.TeacherCache`."""

    def split(self, name: str, windows: Dataset, sequence_length: int) -> StoredSpans:
        """Returns the cached spans of the windows of split ``name``."""


class CachedWindows(TorchDataset):
    """Dataset of windows joined with the cached spans of each teacher.

    Args:
        windows: Windows of one split.
        cached: Cached spans of that split, by teacher name.
    """

    def __init__(self, windows: PaddedWindows, cached: Mapping[str, StoredSpans]) -> None:
        self._windows = windows
        self._cached = cached

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._with_rows(index, self._windows[index])

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Returns several windows at once, as PyTorch's data loader requests them."""
        windows = self._windows.__getitems__(indices)
        return [self._with_rows(index, window) for index, window in zip(indices, windows, strict=True)]

    def _with_rows(self, index: int, window: dict[str, Any]) -> dict[str, Any]:
        rows = {cached_column(name): split.read(index, window) for name, split in self._cached.items()}
        return {**window, **rows}
