"""Stored windows of one source or of several, joined with the teacher rows that caches hold for their spans."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from xtoken_pl.batch import (
    LOSS_MASK,
    NO_WINDOW,
    PROMPT,
    STUDENT_IDS,
    RowArrays,
    cached_column,
    starts_column,
    teacher_columns,
)
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.worker_errors import carrying_iterator


class StoredSpans(Protocol):
    """Cached spans of the windows of a split; see :class:`xtoken_pl.teachers.cache.reader.CachedSplit`."""

    def read(self, index: int, window: Mapping[str, Any]) -> RowArrays:
        """Returns the cached spans of window ``index``."""


class SpanStore(Protocol):
    """A cache of one teacher; see :class:`xtoken_pl.teachers.cache.reader.TeacherCache`."""

    def split(self, name: str, windows: Dataset, sequence_length: int) -> StoredSpans:
        """Returns the cached spans of the windows of split ``name``."""


class StoredWindows(TorchDataset[Window]):
    """Dataset of the windows of a source, and of a blank one, with nothing to learn, at :data:`NO_WINDOW`.

    Args:
        windows: Windows of the source.
        teachers: Names of the teachers that teach on it.
        cached: Cached spans of the windows, by teacher name.
        mark: Adds the domain to a window.
    """

    def __init__(
        self,
        windows: Dataset,
        teachers: Sequence[str],
        cached: Mapping[str, StoredSpans],
        mark: Callable[[Window], Window] = dict,
    ) -> None:
        self.windows = windows
        self._cached = cached
        self._mark = mark
        self.blank: Window = {STUDENT_IDS: [0], LOSS_MASK: [0]}
        for ids, spans in map(teacher_columns, teachers):
            self.blank |= {ids: [0], spans: []}
        starts = map(starts_column, ("", *teachers))
        self.blank |= {column: [0] for column in starts if column in windows.column_names}
        self.blank |= {PROMPT: []} if PROMPT in windows.column_names else {}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Window]:
        """Returns several windows at once, as PyTorch's data loader requests them."""
        return list(carrying_iterator(self.read)(indices))

    def read(self, indices: Sequence[int]) -> Iterator[Window]:
        """Yields several windows, which are read at once."""
        stored = [index for index in indices if index != NO_WINDOW]
        rows = iter(self.windows.__getitems__(stored) if stored else [])
        for index in indices:
            window = self.blank if index == NO_WINDOW else next(rows)
            cached = {cached_column(name): split.read(index, window) for name, split in self._cached.items()}
            yield self._mark(window | cached)


class JoinedWindows(TorchDataset[Window]):
    """Dataset of the windows of several sources, one after the other; the blank window is that of the first.

    Args:
        parts: Windows of each source.
    """

    def __init__(self, parts: Sequence[StoredWindows]) -> None:
        self.parts = parts
        self._first = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, index: int) -> Window:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Window]:
        """Returns several windows at once, as PyTorch's data loader requests them."""
        return list(carrying_iterator(self._read)(indices))

    def _read(self, indices: list[int]) -> Iterator[Window]:
        places = [self._place(index) for index in indices]
        within: dict[int, list[int]] = {}
        for number, index in places:
            within.setdefault(number, []).append(index)
        windows = {number: self.parts[number].read(own) for number, own in within.items()}
        for number, _ in places:
            yield next(windows[number])

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the part that a window is in, and its index there."""
        if index == NO_WINDOW:
            return 0, NO_WINDOW
        number = bisect_right(self._first, index) - 1
        return number, index - self._first[number]
