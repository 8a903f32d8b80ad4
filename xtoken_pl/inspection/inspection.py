"""The data behind an inspection: a text as the student and its teachers see it. Renderers display it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.alignment import Spans, SpanStatistics
from xtoken_pl.batch import LOSS_MASK, STUDENT_IDS, DistillBatch, teacher_columns
from xtoken_pl.data.cutting import Window
from xtoken_pl.inspection.counterparts import Counterparts
from xtoken_pl.inspection.predictions import Candidate, Predictions
from xtoken_pl.inspection.tokens import Token, tokens_of
from xtoken_pl.tokenization import CanonicalVocabulary

CellKind = Literal["one-to-one", "one-to-many", "many-to-one", "many-to-many", "gap", "masked"]
Shade = Literal["even", "odd", "gap", "masked"]

# By whether the student, and the teacher, has one token.
_KINDS: dict[tuple[bool, bool], CellKind] = {
    (True, True): "one-to-one",
    (True, False): "one-to-many",
    (False, True): "many-to-one",
    (False, False): "many-to-many",
}
_NUM_CELLS_BEFORE = 8


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
    def shade(self) -> Shade:
        """Background of the cell; neighbouring spans alternate between ``even`` and ``odd``."""
        if not self.is_learned:
            return "masked"
        return "gap" if self.span is None else ("even", "odd")[self.span % 2]

    @property
    def text(self) -> str:
        """Text of the student's tokens."""
        return "".join(token.text for token in self.student)

    @property
    def ends_line(self) -> bool:
        """Whether a line of the text ends in this cell."""
        return any(b"\n" in token.raw for token in (*self.student, *self.teacher))


class PredictedSpan(NamedTuple):
    """A span with the predictions of its first token.

    Attributes:
        cell: The span.
        before: Text before the span.
        teacher, student: Candidates of each side, most probable first.
        teacher_token, student_token: The token in the text, among the tokens that each side predicts.
    """

    cell: Cell
    before: str
    teacher: list[Candidate]
    student: list[Candidate]
    teacher_token: Token
    student_token: Token


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
    def summary(self) -> str:
        """Number of spans by kind, and of tokens in no span."""
        counts = self.statistics
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.kinds.items() if count) or "none"
        gaps = f"{counts.student_gaps:,} of the student, {counts.teacher_gaps:,} of the teacher"
        return f"{counts.num_spans:,} spans ({kinds}); tokens in no span: {gaps}"

    def caption(self, cell: Cell) -> str:
        """Kind of a cell, and the loss of a span if it is known."""
        losses = {} if self.predictions is None or cell.span is None else self.predictions.losses
        loss = losses.get(cell.student_start)
        return cell.kind if loss is None else f"{cell.kind}, loss {loss:.4g} nats"

    @property
    def student_title(self) -> str:
        """Heading of the student's predictions."""
        return "student through W" if self.predictions is not None and self.predictions.is_projected else "student"

    @property
    def predicted_spans(self) -> list[PredictedSpan]:
        """The spans chosen for display, with their predictions; empty without weights."""
        if self.predictions is None:
            return []
        places = {cell.student_start: place for place, cell in enumerate(self.cells) if cell.span is not None}
        shown = []
        for span in self.predictions.spans:
            place = places[span.student_start]
            cell = self.cells[place]
            before = "".join(other.text for other in self.cells[max(0, place - _NUM_CELLS_BEFORE) : place])
            compared = cell.teacher if self.predictions.is_projected else cell.student
            shown.append(PredictedSpan(cell, before, span.teacher, span.student, cell.teacher[0], compared[0]))
        return shown


@dataclass(frozen=True)
class Inspection:
    """A text tokenized by the student and aligned with each teacher.

    Attributes:
        title: Heading of the output.
        tokenizer: Name of the student's tokenizer.
        tokens: The student's tokens.
        teachers: Views of the teachers, by name.
        notes: Lines about the text as a whole, below the title.
    """

    title: str
    tokenizer: str
    tokens: list[Token]
    teachers: dict[str, TeacherView]
    notes: tuple[str, ...] = ()

    @classmethod
    def from_window(
        cls, title: str, window: Window, student: CanonicalVocabulary, teachers: Mapping[str, CanonicalVocabulary]
    ) -> Inspection:
        """Inspects a window of :class:`xtoken_pl.data.Windower`, with all spans, scored or not.

        A teacher that does not teach on the window is left out.
        """
        sides = {}
        for name in teachers:
            ids, spans = (np.asarray(window.get(column, ()), dtype=np.int64) for column in teacher_columns(name))
            if len(ids):
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


def break_lines(cells: Iterable[Cell], width_of: Callable[[Cell], float], limit: float) -> list[list[Cell]]:
    """Breaks cells into lines, at ``limit`` and where a line of the text ends."""
    lines: list[list[Cell]] = []
    used = math.inf
    for cell in cells:
        width = width_of(cell)
        if used + width > limit:
            lines.append([])
            used = 0.0
        lines[-1].append(cell)
        used = math.inf if cell.ends_line else used + width
    return lines


def _cells(
    tokens: list[Token], learned: NDArray[np.bool_], teacher_tokens: list[Token], spans: NDArray[np.int64]
) -> list[Cell]:
    cells: list[Cell] = []
    before, teacher_before = 0, 0

    def add(start: int, end: int, teacher_start: int, teacher_end: int, span: int | None) -> None:
        is_learned = bool(learned[start:end].any()) if end > start else True
        kind: CellKind = "gap" if is_learned else "masked"
        if span is not None:
            kind = _KINDS[end - start == 1, teacher_end - teacher_start == 1]
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
