"""Cuts the tokens and spans of a document into windows, piece by piece."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, teacher_columns
from xtoken_pl.utilities.segments import greedy_segments

#: A window by column: token ids, loss mask and spans.
Window = dict[str, Any]

# n tokens, S spans, M teachers, K pieces between common token ends


@dataclass(frozen=True)
class Tokenized:
    """Consecutive tokens of a document for every side; the student's name is ``""``.

    Attributes:
        ids: ``[n]`` ids by side, without the prefix.
        learned: ``[n]``, whether each student token is learned.
        spans: ``[S, 4]`` spans by teacher.
    """

    ids: dict[str, NDArray[np.int64]]
    learned: NDArray[np.bool_]
    spans: dict[str, NDArray[np.int64]]

    @cached_property
    def span_starts(self) -> dict[str, NDArray[np.int64]]:
        """``[S]`` first student token of each span, by teacher."""
        return {name: np.ascontiguousarray(spans[:, 0]) for name, spans in self.spans.items()}

    @classmethod
    def join(cls, parts: Sequence[Tokenized]) -> Tokenized:
        """Joins parts that follow one another."""
        if len(parts) == 1:
            return parts[0]
        names = list(parts[0].ids)
        lengths = np.array([[len(part.ids[name]) for name in names] for part in parts])
        starts = dict(zip(names, (np.cumsum(lengths, axis=0) - lengths).T, strict=True))
        spans = {
            name: np.concatenate(
                [part.spans[name] + np.repeat((starts[""][k], starts[name][k]), 2) for k, part in enumerate(parts)]
            )
            for name in parts[0].spans
        }
        ids = {name: np.concatenate([part.ids[name] for part in parts]) for name in names}
        return cls(ids, np.concatenate([part.learned for part in parts]), spans)

    def after(self, bound: NDArray[np.int64]) -> Tokenized:
        """Returns what follows a bound, ``[1 + M]`` tokens of the student and the teachers."""
        start, *starts = bound.tolist()
        ids, spans = {"": self.ids[""][start:]}, {}
        for (name, own), other_start in zip(self.spans.items(), starts, strict=True):
            ids[name] = self.ids[name][other_start:]
            spans[name] = own[np.searchsorted(self.span_starts[name], start) :] - np.repeat((start, other_start), 2)
        return Tokenized(ids, self.learned[start:], spans)


class WindowCutter:
    """Cuts one document into windows, as its tokens come in.

    Args:
        prefixes: Tokens to put before every window, by side; the student's first.
        sequence_length: Maximum number of tokens of a window on any side, prefix included.

    Attributes:
        counts: Numbers of ``overlong`` stretches without a common token end, longer than a window, and of ``unlearned``
            windows, which were dropped because they hold nothing to learn.
    """

    def __init__(self, prefixes: Mapping[str, tuple[int, ...]], sequence_length: int) -> None:
        self.prefixes = {name: np.array(prefix, dtype=np.int64) for name, prefix in prefixes.items()}
        self.limits = [sequence_length - len(prefix) for prefix in prefixes.values()]
        self.counts = Counter[str]()
        self._waiting: list[Tokenized] = []

    def cut(self, more: Tokenized, *, is_last: bool) -> Iterator[Window]:
        """Yields the windows that are complete when more tokens of the document have come in.

        The last window so far may take in some of the tokens that follow: unless ``is_last``, it waits for them.
        """
        self._waiting.append(more)
        num_new = sum(len(tokens.learned) for tokens in self._waiting[1:])
        if not is_last and 0 < num_new < len(self._waiting[0].learned):
            return  # Joining a long rest with every piece would take quadratic time.
        document = Tokenized.join(self._waiting)
        bounds = common_bounds(document, is_end=is_last)
        segments = greedy_segments(bounds, self.limits)
        segments = segments if is_last else segments[:-1]
        for start, end in segments:
            yield from self._windows(document, bounds[start], bounds[end])
        self._waiting = [document.after(bounds[segments[-1][1]]) if segments else document]

    def _windows(self, document: Tokenized, low: NDArray[np.int64], high: NDArray[np.int64]) -> Iterator[Window]:
        """Yields the window between two bounds, or several if the stretch between them is too long for one."""
        is_overlong = bool((high - low > self.limits).any())
        self.counts["overlong"] += is_overlong
        limit, end = self.limits[0], int(high[0])
        # An overlong stretch has no bound to cut at: the student's tokens are kept, without any span.
        for first in range(int(low[0]), end, limit) if is_overlong else [int(low[0])]:
            last = min(first + limit, end)
            if not document.learned[first:last].any():
                self.counts["unlearned"] += 1
                continue
            learned = document.learned[first:last].astype(np.int64)
            window = {
                STUDENT_IDS: np.concatenate((self.prefixes[""], document.ids[""][first:last])),
                LOSS_MASK: np.concatenate((np.zeros_like(self.prefixes[""]), learned)),
            }
            for column, name in enumerate(document.spans, start=1):
                ids_column, spans_column = teacher_columns(name)
                start, stop = (0, 0) if is_overlong else (int(low[column]), int(high[column]))
                window[ids_column] = np.concatenate((self.prefixes[name], document.ids[name][start:stop]))
                inside = np.searchsorted(document.span_starts[name], (first, first if is_overlong else last))
                shift = (len(self.prefixes[""]) - first, len(self.prefixes[name]) - start)
                window[spans_column] = (document.spans[name][slice(*inside)] + np.repeat(shift, 2)).ravel()
            yield window


def common_bounds(document: Tokenized, *, is_end: bool) -> NDArray[np.int64]:
    """Positions in a document at which a token ends for the student and all teachers.

    Args:
        document: Tokens and spans of M teachers.
        is_end: Whether the document ends here, which is then such a position.

    Returns:
        ``[K + 1, 1 + M]`` token positions of the student and of each teacher, from zero on.
    """
    num_student = len(document.learned)
    shared = np.arange(num_student + 1)
    maps: list[NDArray[np.int64]] = []
    for name, spans in document.spans.items():
        student_start, student_end, teacher_start, teacher_end = spans.T
        teacher_position = np.full(num_student + 1, -1, dtype=np.int64)
        # On the teacher's side a gap may separate the end of a span from the start of the next one. The gap goes to
        # the later window, except at the end of the text.
        teacher_position[student_start] = teacher_start
        teacher_position[student_end] = teacher_end
        teacher_position[0] = 0
        if is_end:
            teacher_position[-1] = len(document.ids[name])
        maps.append(teacher_position)
        shared = shared[teacher_position[shared] >= 0]
    return np.stack([shared, *(teacher_position[shared] for teacher_position in maps)], axis=1)


def as_columns(columns: Sequence[str], windows: Sequence[Window]) -> dict[str, list[Any]]:
    """Converts windows to columns: lists of integers, and arrays of spans."""
    return {
        column: [window[column] if column.endswith("/spans") else window[column].tolist() for window in windows]
        for column in columns
    }
