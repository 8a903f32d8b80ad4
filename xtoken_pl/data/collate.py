"""Collates windows into a batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xtoken_pl.batch import (
    DOMAIN,
    LOSS_MASK,
    PROMPT,
    STUDENT_IDS,
    AllRows,
    DistillBatch,
    KnownRows,
    Planner,
    Prompt,
    RowCuts,
    SpanBatch,
    TeacherBatch,
    TokenBatch,
    cached_column,
    starts_column,
    teacher_columns,
)
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.row_servers import RowServer, add_served_rows
from xtoken_pl.utilities.ranges import expand

# B windows, T padded length, N/Q student/teacher rows, S spans

_NO_SPANS = np.empty((0, 4), dtype=np.int64)


def collate(
    windows: Sequence[Window],
    teachers: Sequence[str],
    planners: Mapping[str, Planner] | None = None,
    servers: Mapping[str, RowServer] | None = None,
) -> DistillBatch:
    """Pads windows on the right and lists the rows to score.

    A token is scored if the loss mask keeps it and another token precedes it. A span is scored if all its student
    tokens are, and a token precedes it on the teacher's side. A teacher gets only windows with a span to score.

    Args:
        windows: Rows of :class:`xtoken_pl.data.Windower`, joined with the cached spans of teachers that have a cache,
            with their domain if there are several, and with their prompts. A window may lack the columns of a teacher,
            and hold nothing but a prompt.
        teachers: Names of the teachers.
        planners: Batch planners of the losses that define one, by teacher name.
        servers: Servers that are asked for the rows of their teachers, by name.
    """
    ids = [np.asarray(window[STUDENT_IDS], dtype=np.int64) for window in windows]
    masks = [np.asarray(window[LOSS_MASK], dtype=bool) for window in windows]
    width = max(1, *map(len, ids))
    student_rows: list[NDArray[np.int64]] = []
    row_of_token: list[NDArray[np.int64]] = []  # row that predicts each token, -1 for none
    num_rows = 0
    for index, mask in enumerate(masks):
        tokens = np.flatnonzero(mask[1:]) + 1
        rows = np.full(len(mask), -1, dtype=np.int64)
        rows[tokens] = num_rows + np.arange(len(tokens))
        row_of_token.append(rows)
        student_rows.append(index * width + tokens - 1)
        num_rows += len(tokens)
    student = _tokens(ids, np.concatenate(student_rows), _starts(windows, ""))
    views = {name: _teacher(windows, name, row_of_token, num_rows) for name in teachers}
    cuts = RowCuts.from_spans(num_rows, {name: view.spans for name, view in views.items()})
    domain = torch.tensor([window.get(DOMAIN, 0) for window in windows])
    prompts = None
    if any(PROMPT in window for window in windows):
        prompts = [Prompt.from_window(window, teachers) for window in windows]
    batch = DistillBatch(student, views, cuts, domain=domain, prompts=prompts)
    add_served_rows([batch], servers or {})
    return batch.planned(planners or {})


def _teacher(
    windows: Sequence[Window], name: str, row_of_token: list[NDArray[np.int64]], num_rows: int
) -> TeacherBatch:
    ids_column, spans_column = teacher_columns(name)
    found = [
        _kept_spans(window[spans_column], rows) if spans_column in window else _NO_SPANS
        for window, rows in zip(windows, row_of_token, strict=True)
    ]
    read = [index for index, spans in enumerate(found) if len(spans)]
    windows, kept = [windows[index] for index in read], [found[index] for index in read]
    ids = [np.asarray(window[ids_column], dtype=np.int64) for window in windows]
    width = max(map(len, ids), default=1)
    spans = np.concatenate([_NO_SPANS, *kept])
    firsts = [row_of_token[index][own[:, 0]] for index, own in zip(read, kept, strict=True)]
    student_first = np.concatenate([_NO_SPANS[:, 0], *firsts])
    window_index = np.repeat(np.arange(len(kept)), [len(own) for own in kept])
    student_length, teacher_length = spans[:, 1] - spans[:, 0], spans[:, 3] - spans[:, 2]
    teacher_first = np.cumsum(teacher_length) - teacher_length
    first_position = window_index * width + spans[:, 2] - 1
    _, teacher_rows = expand(first_position, first_position + teacher_length)
    student_span = np.full(num_rows, len(spans), dtype=np.int64)
    span, row = expand(student_first, student_first + student_length)
    student_span[row] = span
    teacher_span = np.repeat(np.arange(len(spans)), teacher_length)
    columns = (student_first, student_length, teacher_first, teacher_length, student_span, teacher_span)
    batch = TeacherBatch(_tokens(ids, teacher_rows, _starts(windows, name)), SpanBatch(*map(torch.from_numpy, columns)))
    if windows and cached_column(name) in windows[0]:
        batch.known = KnownRows.from_windows([window[cached_column(name)] for window in windows])
        num = len(batch.tokens.rows) if isinstance(batch.known, AllRows) else len(batch.spans)
        assert len(batch.known) == num, "a cache stores the spans that are kept"
    return batch


def _kept_spans(flat: Any, row_of_token: NDArray[np.int64]) -> NDArray[np.int64]:
    spans = np.asarray(flat, dtype=np.int64).reshape(-1, 4)
    masked = np.concatenate(([0], np.cumsum(row_of_token < 0)))
    takes_part = (masked[spans[:, 1]] == masked[spans[:, 0]]) & (spans[:, 2] >= 1)
    return spans[takes_part]


def _starts(windows: Sequence[Window], side: str) -> list[NDArray[np.int64]] | None:
    """Start of each document in each window; None if the model reads a window as one text."""
    column = starts_column(side)
    has_starts = bool(windows) and column in windows[0]
    return [np.asarray(window[column], dtype=np.int64) for window in windows] if has_starts else None


def _tokens(
    ids: list[NDArray[np.int64]], rows: NDArray[np.int64], starts: list[NDArray[np.int64]] | None
) -> TokenBatch:
    width = max(1, *map(len, ids)) if ids else 1
    # Padding is masked on every side, so any id will do.
    input_ids = np.zeros((len(ids), width), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for index, sequence in enumerate(ids):
        input_ids[index, : len(sequence)] = sequence
        attention_mask[index, : len(sequence)] = 1
    labels = input_ids.ravel()[rows + 1]
    tokens = TokenBatch(*map(torch.from_numpy, (input_ids, attention_mask, rows, labels)))
    if starts is not None:
        tokens.position_ids = torch.from_numpy(_positions(starts, list(map(len, ids)), width))
    return tokens


def _positions(starts: list[NDArray[np.int64]], lengths: list[int], width: int) -> NDArray[np.int64]:
    """``[B, T]`` position of each token in its document; padding counts as a document of its own."""
    places = np.arange(width)
    begins = (np.append(begin, length) for begin, length in zip(starts, lengths, strict=True))
    return np.stack([places - begin[np.searchsorted(begin, places, side="right") - 1] for begin in begins])
