"""The data behind an inspection: a text as the student and its teachers see it. Renderers display it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.alignment import Spans, SpanStatistics
from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, DistillBatch, teacher_columns
from xtoken_pl.data.windows import Window
from xtoken_pl.inspection.counterparts import Counterparts
from xtoken_pl.inspection.predictions import Predictions
from xtoken_pl.inspection.tokens import Token, tokens_of
from xtoken_pl.tokenization import CanonicalVocabulary

CellKind = Literal["one-to-one", "one-to-many", "many-to-one", "many-to-many", "gap", "masked"]


@dataclass(frozen=True)
class Cell:
    """Consecutive tokens of both sides: a span, or the gap between two spans.

    Attributes:
        kind: Kind of span; for tokens in no span ``gap``, or ``masked`` if they are not learned anyway.
        student, teacher: Tokens of each side; one of them may be empty in a gap.
        student_start: Index of the first student token.
        span: Index of the span; None for a gap.
        is_learned: Whether the student learns these tokens.
    """

    kind: CellKind
    student: Sequence[Token]
    teacher: Sequence[Token]
    student_start: int
    span: int | None
    is_learned: bool

    @property
    def ends_line(self) -> bool:
        """Whether a line of the text ends in this cell."""
        return any(b"\n" in token.raw for token in (*self.student, *self.teacher))


@dataclass(frozen=True)
class TeacherView:
    """The text as one teacher sees it.

    Attributes:
        tokenizer: Name of its tokenizer.
        tokens: The teacher's tokens.
        cells: Spans and gaps, in text order.
        statistics: Statistics of the spans.
        counterparts: Teacher tokens that the loss compares each student token with; None if it pairs no tokens.
        predictions: Predictions of the models; None without weights.
    """

    tokenizer: str
    tokens: list[Token]
    cells: list[Cell]
    statistics: SpanStatistics
    counterparts: Counterparts | None = None
    predictions: Predictions | None = None

    @property
    def kinds(self) -> dict[str, int]:
        """Number of spans of each kind."""
        counts = self.statistics
        return {
            "one-to-one": counts.one_to_one,
            "one-to-many": counts.one_to_many,
            "many-to-one": counts.many_to_one,
            "many-to-many": counts.many_to_many,
        }

    @property
    def kinds_text(self) -> str:
        """Text such as ``12 one-to-one, 3 one-to-many``; ``none`` without spans."""
        return ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.items() if count) or "none"

    def cell_at(self, student_start: int) -> int:
        """Index of the span cell that starts at a student token."""
        return next(
            i for i, cell in enumerate(self.cells) if cell.span is not None and cell.student_start == student_start
        )

    def context(self, index: int, num_cells: int = 8) -> str:
        """Text of up to ``num_cells`` cells before cell ``index``."""
        return "".join(token.text for cell in self.cells[max(0, index - num_cells) : index] for token in cell.student)


@dataclass(frozen=True)
class Inspection:
    """A text tokenized by the student and aligned with each teacher.

    Attributes:
        title: Heading of the output.
        tokenizer: Name of the student's tokenizer.
        tokens: The student's tokens.
        teachers: Views of the teachers, by name.
    """

    title: str
    tokenizer: str
    tokens: list[Token]
    teachers: dict[str, TeacherView]

    @classmethod
    def from_window(
        cls, title: str, window: Window, student: CanonicalVocabulary, teachers: Mapping[str, CanonicalVocabulary]
    ) -> Inspection:
        """Inspects a window of :class:`xtoken_pl.data.Windower`, with all spans, scored or not."""
        sides = {}
        for name in teachers:
            ids, spans = (np.asarray(window[column], dtype=np.int64) for column in teacher_columns(name))
            sides[name] = (ids, spans.reshape(-1, 4))
        ids, learned = np.asarray(window[STUDENT_IDS], dtype=np.int64), np.asarray(window[LOSS_MASK], dtype=bool)
        return cls._from_ids(title, ids, learned, sides, student, teachers)

    @classmethod
    def from_batch(
        cls, title: str, batch: DistillBatch, student: CanonicalVocabulary, teachers: Mapping[str, CanonicalVocabulary]
    ) -> Inspection:
        """Inspects the only sequence of a batch, with the spans that are scored."""
        ids = _sequence(batch.student.input_ids, batch.student.attention_mask)
        learned = np.zeros(len(ids), dtype=bool)
        student_rows = batch.student.rows.numpy(force=True)
        learned[student_rows + 1] = True
        sides = {}
        for name, view in batch.teachers.items():
            start = student_rows[view.spans.student_first.numpy(force=True)] + 1
            teacher_start = view.tokens.rows.numpy(force=True)[view.spans.teacher_first.numpy(force=True)] + 1
            lengths = (view.spans.student_length.numpy(force=True), view.spans.teacher_length.numpy(force=True))
            spans = np.stack((start, start + lengths[0], teacher_start, teacher_start + lengths[1]), axis=1)
            sides[name] = (_sequence(view.tokens.input_ids, view.tokens.attention_mask), spans)
        return cls._from_ids(title, ids, learned, sides, student, teachers)

    @classmethod
    def _from_ids(
        cls,
        title: str,
        ids: NDArray[np.int64],
        learned: NDArray[np.bool_],
        sides: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
        student: CanonicalVocabulary,
        teachers: Mapping[str, CanonicalVocabulary],
    ) -> Inspection:
        tokens = tokens_of(student, ids)
        views = {}
        for name, (teacher_ids, spans) in sides.items():
            teacher_tokens = tokens_of(teachers[name], teacher_ids)
            views[name] = TeacherView(
                tokenizer=teachers[name].name,
                tokens=teacher_tokens,
                cells=_cells(tokens, learned, teacher_tokens, spans),
                statistics=SpanStatistics.from_spans(Spans(*spans.T), len(tokens), len(teacher_tokens)),
            )
        return cls(title, student.name, tokens, views)

    def with_counterparts(self, counterparts: Mapping[str, Counterparts | None]) -> Inspection:
        """Returns a copy with the counterparts of each teacher."""
        views = {name: replace(view, counterparts=counterparts[name]) for name, view in self.teachers.items()}
        return replace(self, teachers=views)

    def with_predictions(self, predictions: Mapping[str, Predictions]) -> Inspection:
        """Returns a copy with the predictions for each teacher."""
        views = {name: replace(view, predictions=predictions[name]) for name, view in self.teachers.items()}
        return replace(self, teachers=views)


def _cells(
    tokens: list[Token], learned: NDArray[np.bool_], teacher_tokens: list[Token], spans: NDArray[np.int64]
) -> list[Cell]:
    cells: list[Cell] = []
    before, teacher_before = 0, 0

    def add(start: int, end: int, teacher_start: int, teacher_end: int, span: int | None) -> None:
        one, teacher_one = end - start == 1, teacher_end - teacher_start == 1
        is_learned = bool(learned[start:end].any()) if end > start else True
        kind: CellKind = "gap" if is_learned else "masked"
        if span is not None:
            kind = ("one-to-one" if teacher_one else "one-to-many") if one else "many-to-many"
            if teacher_one and not one:
                kind = "many-to-one"
        cells.append(Cell(kind, tokens[start:end], teacher_tokens[teacher_start:teacher_end], start, span, is_learned))

    ends = (len(tokens), len(tokens), len(teacher_tokens), len(teacher_tokens))
    for index, (start, end, teacher_start, teacher_end) in enumerate([*spans.tolist(), ends]):
        if start > before or teacher_start > teacher_before:
            add(before, start, teacher_before, teacher_start, None)
        if index < len(spans):
            add(start, end, teacher_start, teacher_end, index)
        before, teacher_before = end, teacher_end
    return cells


def _sequence(input_ids: Tensor, attention_mask: Tensor) -> NDArray[np.int64]:
    assert len(input_ids) == 1, "an inspection shows one sequence"
    return input_ids[0, : int(attention_mask[0].sum())].numpy(force=True)
