"""Cuts texts into windows that the student and every teacher see whole, none of the text lost.

A text is tokenized once under each tokenizer and aligned once with each teacher. Windows are cut where all of them
end a token, never each side by its own limit, so that the tails match.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xtoken_pl.alignment import SpanAligner, Spans
from xtoken_pl.segments import greedy_segments
from xtoken_pl.tokenization import CanonicalVocabulary

logger = logging.getLogger(__name__)

# Changes when the same text would give other windows, so that cached ones are made anew.
_VERSION = 1

#: Token ids, loss mask and spans of a window, by column.
Window = dict[str, Any]

STUDENT_IDS, LOSS_MASK = "student_ids", "loss_mask"


def teacher_columns(name: str) -> tuple[str, str]:
    """The columns of a teacher's token ids and of its spans."""
    return f"{name}/ids", f"{name}/spans"


class Windower:
    """Makes windows of texts: token ids of every side, a loss mask, and the spans of every teacher.

    Every window starts with the special tokens that a tokenizer puts before a text (bos), and the last window of a
    text ends with eos on every side that has one.

    Args:
        student: The student's vocabulary.
        teachers: Each teacher's vocabulary.
        sequence_length: Most tokens of a window on any side, special tokens included.

    Raises:
        ValueError: If ``sequence_length`` leaves no room for a span.
    """

    def __init__(
        self, student: CanonicalVocabulary, teachers: dict[str, CanonicalVocabulary], sequence_length: int
    ) -> None:
        # A span needs a token before its first one, to be predicted from, on both sides.
        for side, vocabulary in {"student": student, **{f"teacher {n!r}": v for n, v in teachers.items()}}.items():
            shortest = max(1, len(vocabulary.prefix_ids)) + 1
            if sequence_length < shortest:
                raise ValueError(
                    f"sequence_length must be at least {shortest} for one span of the {side}, got {sequence_length}"
                )
        self.student = student
        self.teachers = teachers
        self.sequence_length = sequence_length
        self.aligners = {name: SpanAligner(student.tokenizer, teacher.tokenizer) for name, teacher in teachers.items()}

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the windows of a text."""
        parts = {name: teacher.fingerprint for name, teacher in self.teachers.items()}
        described = json.dumps([_VERSION, self.student.fingerprint, parts, self.sequence_length])
        return hashlib.sha256(described.encode()).hexdigest()[:32]

    def __call__(self, texts: Sequence[str]) -> dict[str, list[Any]]:
        """Windows of all texts, as columns.

        Returns:
            ``student_ids``: token ids; ``loss_mask``: 1 for the tokens to learn; for each teacher ``NAME/ids`` and
            ``NAME/spans``, flat (student_start, student_end, teacher_start, teacher_end) for each span.
        """
        columns: dict[str, list[Any]] = {STUDENT_IDS: [], LOSS_MASK: []}
        for name in self.teachers:
            columns |= {column: [] for column in teacher_columns(name)}
        texts = list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(
                    f"every text must be a string, got {type(text).__name__} at place {index} of {len(texts)}; "
                    "remove such rows, or name another text_field"
                )
        encoded = {"": _with_eos(self.student, self.student.encode(texts))}
        for name, teacher in self.teachers.items():
            encoded[name] = _with_eos(teacher, teacher.encode(texts))
        num_overlong = 0
        for index in range(len(texts)):
            student_ids = encoded[""][index]
            teacher_ids = {name: encoded[name][index] for name in self.teachers}
            if len(student_ids):
                num_overlong += self._add_windows(columns, student_ids, teacher_ids)
        if num_overlong:
            logger.warning(
                "%d stretches of text without a common token boundary are longer than sequence_length=%d; "
                "they are learned by cross-entropy alone",
                num_overlong,
                self.sequence_length,
            )
        return columns

    def _add_windows(
        self,
        columns: dict[str, list[Any]],
        student_ids: NDArray[np.int64],
        teacher_ids: dict[str, NDArray[np.int64]],
    ) -> int:
        spans = {name: self.aligners[name].align(student_ids, ids) for name, ids in teacher_ids.items()}
        bounds = common_bounds(len(student_ids), [(spans[name], len(teacher_ids[name])) for name in teacher_ids])
        sides = (self.student, *self.teachers.values())
        limits = [self.sequence_length - len(vocabulary.prefix_ids) for vocabulary in sides]
        num_overlong = 0
        for start, end in greedy_segments(bounds, limits):
            low, high = bounds[start], bounds[end]
            if (high - low <= limits).all():
                self._add_window(columns, student_ids[low[0] : high[0]])
                for column, (name, ids) in enumerate(teacher_ids.items(), start=1):
                    inside = _slice(spans[name], low[0], high[0])
                    self._add_teacher(columns, name, ids[low[column] : high[column]], inside, low[0], low[column])
                continue
            # No place to cut inside: the student's tokens are kept, without any span.
            num_overlong += 1
            for piece in range(low[0], high[0], limits[0]):
                self._add_window(columns, student_ids[piece : min(piece + limits[0], high[0])])
                for name, ids in teacher_ids.items():
                    self._add_teacher(columns, name, ids[:0], np.empty((0, 4), dtype=np.int64), 0, 0)
        return num_overlong

    def _add_window(self, columns: dict[str, list[Any]], ids: NDArray[np.int64]) -> None:
        prefix = self.student.prefix_ids
        columns[STUDENT_IDS].append([*prefix, *ids.tolist()])
        columns[LOSS_MASK].append([0] * len(prefix) + [1] * len(ids))

    def _add_teacher(
        self,
        columns: dict[str, list[Any]],
        name: str,
        ids: NDArray[np.int64],
        spans: NDArray[np.int64],
        student_start: int,
        teacher_start: int,
    ) -> None:
        ids_column, spans_column = teacher_columns(name)
        prefix = self.teachers[name].prefix_ids
        columns[ids_column].append([*prefix, *ids.tolist()])
        student_shift = len(self.student.prefix_ids) - student_start
        teacher_shift = len(prefix) - teacher_start
        columns[spans_column].append((spans + (student_shift, student_shift, teacher_shift, teacher_shift)).ravel())


def common_bounds(num_student: int, aligned: Sequence[tuple[Spans, int]]) -> NDArray[np.int64]:
    """The places where the student and all teachers end a token.

    Args:
        num_student: Student tokens of the text.
        aligned: For each teacher its spans and the number of its tokens.

    Returns:
        ``[K + 1, 1 + M]`` token positions of the student and of each of M teachers, from zero to the end.
    """
    shared = np.arange(num_student + 1)
    maps: list[NDArray[np.int64]] = []
    for spans, num_teacher in aligned:
        teacher_position = np.full(num_student + 1, -1, dtype=np.int64)
        # A span's end and the next one's start may differ on the teacher's side, where a gap lies between: the gap
        # goes to the window behind, except at the end of the text.
        teacher_position[spans.student_start] = spans.teacher_start
        teacher_position[spans.student_end] = spans.teacher_end
        teacher_position[0], teacher_position[-1] = 0, num_teacher
        maps.append(teacher_position)
        shared = shared[teacher_position[shared] >= 0]
    return np.stack([shared, *(teacher_position[shared] for teacher_position in maps)], axis=1)


def _slice(spans: Spans, low: int, high: int) -> NDArray[np.int64]:
    start, end = np.searchsorted(spans.student_start, (low, high))
    return spans.to_array()[start:end]


def _with_eos(vocabulary: CanonicalVocabulary, sequences: list[list[int]]) -> list[NDArray[np.int64]]:
    eos = vocabulary.roles.get("eos")
    end = [] if eos is None else [eos]
    return [np.array([*ids, *end] if ids else [], dtype=np.int64) for ids in sequences]
