"""Stored windows, joined with the teacher rows that caches hold for their spans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from xtoken_pl.batch import LOSS_MASK, NO_WINDOW, STUDENT_IDS, SpanArrays, cached_column, starts_column, teacher_columns
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.worker_errors import carrying_iterator


class StoredSpans(Protocol):
    """Cached spans of the windows of a split; see :class:`xtoken_pl.teachers.cache.reader.CachedSplit`."""

    def read(self, index: int, window: Mapping[str, Any]) -> SpanArrays:
        """Returns the cached spans of window ``index``."""


class SpanStore(Protocol):
    """A cache of one teacher; see :class:`xtoken_pl.teachers.cache.reader.TeacherCache`."""

    def split(self, name: str, windows: Dataset, sequence_length: int) -> StoredSpans:
        """Returns the cached spans of the windows of split ``name``."""


class StoredWindows(TorchDataset[Window]):
    """Dataset of the windows of a split, and of a blank one, with nothing to learn, at :data:`NO_WINDOW`.

    Args:
        windows: Windows of the split.
        teachers: Names of the teachers.
        cached: Cached spans of the windows, by teacher name.
    """

    def __init__(self, windows: Dataset, teachers: Sequence[str], cached: Mapping[str, StoredSpans]) -> None:
        self.windows = windows
        self._cached = cached
        self.blank: Window = {STUDENT_IDS: [0], LOSS_MASK: [0]}
        for ids, spans in map(teacher_columns, teachers):
            self.blank |= {ids: [0], spans: []}
        starts = map(starts_column, ("", *teachers))
        self.blank |= {column: [0] for column in starts if column in windows.column_names}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Window]:
        """Returns several windows at once, as PyTorch's data loader requests them."""
        return list(self._read(indices))

    @carrying_iterator
    def _read(self, indices: list[int]) -> Iterator[Window]:
        stored = [index for index in indices if index != NO_WINDOW]
        rows = iter(self.windows.__getitems__(stored) if stored else [])
        for index in indices:
            window = self.blank if index == NO_WINDOW else next(rows)
            yield window | {cached_column(name): split.read(index, window) for name, split in self._cached.items()}
