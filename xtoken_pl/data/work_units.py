"""Divides the texts of a data set into units of work of similar size, so that progress shows within a long text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from xtoken_pl.data.cutting import Window
from xtoken_pl.data.left_out import LeftOutFile
from xtoken_pl.data.maker import DOCUMENTS_PER_CALL, WindowMaker
from xtoken_pl.data.windows import WindowPiece

_ROWS_PER_READ = 10_000


def work_units(texts: Dataset, maker: WindowMaker, num_processes: int) -> Dataset:
    """Lists the units of work: rows ``first`` to ``last`` of the texts, cut into ``num_parts`` units.

    Units of a hundred rows, or fewer; a long text is several units. The processes take equally many units each, and as
    many texts as possible, so that each text is in the units of one process; empty units fill up the others.

    Args:
        texts: Texts or conversations.
        maker: Maker of the windows.
        num_processes: Number of processes, or of shards in the cache.
    """
    num_sections = _num_bytes(texts, maker) / maker.windower.section_length
    shares = [
        list(_units(num_sections, int(rows[0]), int(rows[-1]) + 1, is_packed=maker.packing != "none"))
        for rows in np.array_split(np.arange(len(texts)), num_processes)
    ]
    longest = max(map(len, shares))
    units = [unit for share in shares for unit in (*share, *[(0, 0, 0, 1)] * (longest - len(share)))]
    return Dataset.from_dict(dict(zip(("first", "last", "part", "num_parts"), zip(*units, strict=True), strict=True)))


def num_shards(cache_file: str, num_processes: int) -> int:
    """Returns the number of shards that ``Dataset.map`` makes, or takes from its cache.

    It continues what an earlier run with another number of processes has made, shard by shard: the units must be those
    of that run.

    Args:
        cache_file: Cache file of the windows, as given to ``map``; several shards have a suffix.
        num_processes: Number of processes that tokenize and align.
    """
    file = Path(cache_file)
    found = Counter({1: 1} if file.exists() else {})
    shard_name = re.compile(rf"{re.escape(file.stem)}_\d+_of_(\d+){re.escape(file.suffix)}")
    for other in file.parent.glob(f"{file.stem}_*"):
        if match := shard_name.fullmatch(other.name):
            found[int(match[1])] += 1
    # The choice of `map`: the most complete shards, then those nearest to the number of processes, then the fewest.
    return min(found, key=lambda num: ((num - found[num]) / num, abs(num - num_processes), num), default=num_processes)


class UnitWindows:
    """Function for ``Dataset.map`` that makes the windows of one unit of work at a time.

    The units of a long text follow one another, and each continues where the one before it stopped.

    Args:
        texts: Texts or conversations.
        maker: Maker of the windows.
        left_out: Takes what is left out.
    """

    def __init__(self, texts: Dataset, maker: WindowMaker, left_out: LeftOutFile) -> None:
        self.texts = texts.select_columns(maker.columns)
        self.maker = maker
        self.left_out = left_out
        self._pieces: Iterator[WindowPiece] = iter(())
        self._done = 0.0
        self._next: tuple[int, int] | None = None

    def __call__(self, unit: Mapping[str, list[int]]) -> dict[str, list[Any]]:
        """Returns the windows of a unit as columns."""
        first, last, part, num_parts = (unit[key][0] for key in ("first", "last", "part", "num_parts"))
        if first == last:
            return {column: [] for column in self.maker.window_columns}
        if self._next != (first, part):
            rows = self.texts[first:last]
            self._pieces, self._done = self.maker.pieces(*(rows[column] for column in self.maker.columns)), 0.0
            self._until(part / num_parts)  # nothing, unless the process begins in the middle of a text
        # The last part reads to the very end, where warnings are given.
        windows, reasons = self._until((part + 1) / num_parts if part + 1 < num_parts else math.inf)
        self._next = (first, part + 1)
        if reasons:
            self.left_out.append((first, last, part, num_parts), reasons)
        return {column: [window[column] for window in windows] for column in self.maker.window_columns}

    def _until(self, share: float) -> tuple[list[Window], list[str]]:
        """Returns the windows up to a share of the documents, and the reasons for what was left out of them."""
        windows: list[Window] = []
        reasons: list[str] = []
        while self._done < share and (piece := next(self._pieces, None)) is not None:
            windows += piece.windows
            reasons += piece.left_out
            self._done = piece.done
        return windows, reasons


def _units(
    num_sections: NDArray[np.float64], start: int, end: int, *, is_packed: bool
) -> Iterator[tuple[int, int, int, int]]:
    """Yields (first, last, part, num_parts) of every unit of some rows."""
    for first in range(start, end, DOCUMENTS_PER_CALL):
        call = range(first, min(first + DOCUMENTS_PER_CALL, end))
        # Windows of a hundred documents are packed together.
        for rows in [[*call]] if is_packed else _apart(call, num_sections):
            num_parts = max(1, math.ceil(sum(num_sections[row] for row in rows if num_sections[row] > 1)))
            yield from ((rows[0], rows[-1] + 1, part, num_parts) for part in range(num_parts))


def _apart(rows: Iterable[int], num_sections: NDArray[np.float64]) -> Iterator[list[int]]:
    """Yields each long text by itself, and all neighbouring short ones together."""
    for is_long, group in groupby(rows, lambda row: num_sections[row] > 1):
        alike = list(group)
        yield from [[row] for row in alike] if is_long else [alike]


def _num_bytes(texts: Dataset, maker: WindowMaker) -> NDArray[np.int64]:
    """``[N]`` number of bytes of each text, without reading the texts; zero for conversations."""
    if maker.source.holds_conversations:
        return np.zeros(len(texts), dtype=np.int64)
    tables = texts.select_columns(maker.columns).with_format("arrow").iter(batch_size=_ROWS_PER_READ)
    return np.concatenate([_lengths(table.column(0)) for table in tables])


def _lengths(column: pa.ChunkedArray) -> NDArray[np.int64]:
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return np.zeros(len(column), dtype=np.int64)
    return np.asarray(pc.fill_null(pc.binary_length(column), 0).to_numpy(), dtype=np.int64)
