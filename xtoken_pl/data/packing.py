"""Packs short windows into full ones, each holding several documents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, starts_column, teacher_columns
from xtoken_pl.data.cutting import Window, as_columns
from xtoken_pl.data.first_fit import first_fit
from xtoken_pl.tokenization import CanonicalVocabulary

#: ``joined``: a document attends to the documents before it in its window; ``separate``: it does not.
Packing = Literal["none", "joined", "separate"]

# n windows, D sides


class Packer:
    """Packs whole windows together, the same ones on every side.

    First fit, longest first: each goes into the first packed window that has room for it on every side.

    - ``joined``: eos separates documents on sides that have one; it is learned only if it belongs to the document. A
      student that has none does not learn the first token of a document: nothing shows it that one begins.
    - ``separate``: extra columns give the start of each document. A token is learned, and a span kept, only if a
      token of the same document precedes it, as when every window is read by itself.

    Args:
        sides: All vocabularies by name, the student's under ``""``.
        sequence_length: Maximum number of tokens of a window on any side.
        packing: Whether documents attend to each other.
    """

    def __init__(
        self,
        sides: Mapping[str, CanonicalVocabulary],
        sequence_length: int,
        packing: Literal["joined", "separate"],
    ) -> None:
        self.sequence_length = sequence_length
        self.is_separate = packing == "separate"
        self.eos = {name: None if self.is_separate else side.roles.get("eos") for name, side in sides.items()}

    def __call__(self, columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Converts columns of windows to columns of packed windows."""
        rows = zip(*columns.values(), strict=True)
        windows = [dict(zip(columns, map(_array, row), strict=True)) for row in rows]
        return as_columns([*columns, *self.start_columns], self.pack(windows))

    @property
    def start_columns(self) -> list[str]:
        """Columns that a packed window has in addition."""
        return list(map(starts_column, self.eos)) if self.is_separate else []

    def pack(self, windows: Sequence[Window]) -> list[Window]:
        """Packs windows, in the order of the first document of each packed window."""
        return [self._join([windows[place] for place in places]) for places in self._first_fit(windows)]

    def _first_fit(self, windows: Sequence[Window]) -> list[list[int]]:
        """Indices of the windows in each packed window, in order."""
        if not windows:
            return []
        sizes = np.array([self._sizes(window) for window in windows])  # [n, D]
        order = np.argsort(-sizes.max(axis=1), kind="stable")
        packed: dict[int, list[int]] = defaultdict(list)
        for place, number in zip(order.tolist(), first_fit(sizes[order].tolist(), self.sequence_length), strict=True):
            packed[number].append(place)
        return sorted(sorted(places) for places in packed.values())

    def _sizes(self, window: Window) -> list[int]:
        """Number of tokens on each side, including the eos needed before a following document."""
        return [len(ids) + len(self._between(side, ids)) for side, ids in self._ids(window).items()]

    def _between(self, side: str, ids: Sequence[int] | NDArray[np.int64]) -> list[int]:
        eos = self.eos[side]
        return [] if eos is None or (len(ids) and ids[-1] == eos) else [eos]

    def _ids(self, window: Window) -> dict[str, NDArray[np.int64]]:
        return {side: window[teacher_columns(side)[0] if side else STUDENT_IDS] for side in self.eos}

    def _join(self, documents: Sequence[Window]) -> Window:
        ids: dict[str, list[int]] = {side: [] for side in self.eos}
        starts: dict[str, list[int]] = {side: [] for side in self.eos}
        mask: list[int] = []
        spans: dict[str, list[NDArray[np.int64]]] = {side: [] for side in self.eos if side}
        for number, document in enumerate(documents):
            for side, own in self._ids(document).items():
                if number:
                    ids[side] += self._between(side, ids[side])
                starts[side].append(len(ids[side]))
                ids[side] += own.tolist()
            learned = document[LOSS_MASK].tolist()
            if self.eos[""] is None:  # also if separate
                learned[0] = 0
            mask += [0] * (starts[""][-1] - len(mask)) + learned
            for side, found in spans.items():
                own_spans = document[teacher_columns(side)[1]].reshape(-1, 4)
                if self.is_separate:
                    own_spans = own_spans[(own_spans[:, [0, 2]] > 0).all(axis=1)]
                shift = (starts[""][-1], starts[side][-1])
                found.append(own_spans + np.repeat(shift, 2))
        window: Window = {STUDENT_IDS: ids[""], LOSS_MASK: mask}
        for side, found in spans.items():
            ids_column, spans_column = teacher_columns(side)
            window |= {ids_column: ids[side], spans_column: np.concatenate(found).ravel()}
        if self.is_separate:
            window |= {starts_column(side): places for side, places in starts.items()}
        return {column: _array(values) for column, values in window.items()}


def _array(values: Any) -> NDArray[np.int64]:
    return np.asarray(values, dtype=np.int64)
