"""Extracts one sequence of a batch for inspection."""

from __future__ import annotations

from xtoken_pl.batch import AllRows, DistillBatch, RowCuts, SpanBatch, TeacherBatch, TokenBatch


def first_sequence(batch: DistillBatch) -> DistillBatch:
    """Returns the first sequence of a batch as a batch of its own, without the losses' plans."""
    student, num_rows = _first(batch.student)
    views: dict[str, TeacherBatch] = {}
    for name, view in batch.teachers.items():
        num_spans = int((view.spans.student_first < num_rows).sum())
        # A teacher reads only the sequences in which it has a span.
        tokens, num_teacher_rows = _first(view.tokens) if num_spans else (_nothing(view.tokens), 0)
        spans = SpanBatch(
            student_first=view.spans.student_first[:num_spans],
            student_length=view.spans.student_length[:num_spans],
            teacher_first=view.spans.teacher_first[:num_spans],
            teacher_length=view.spans.teacher_length[:num_spans],
            # Rows in no span hold the number of spans.
            student_span=view.spans.student_span[:num_rows].clamp(max=num_spans),
            teacher_span=view.spans.teacher_span[:num_teacher_rows].clamp(max=num_spans),
        )
        num_known = num_teacher_rows if isinstance(view.known, AllRows) else num_spans
        known = None if view.known is None else view.known.select(slice(num_known))
        views[name] = TeacherBatch(tokens, spans, None, known)
    return DistillBatch(
        student, views, RowCuts.from_spans(num_rows, {name: view.spans for name, view in views.items()})
    )


def _first(tokens: TokenBatch) -> tuple[TokenBatch, int]:
    """Returns the first sequence without padding, and its number of rows."""
    length = int(tokens.attention_mask[0].sum())
    num_rows = int((tokens.rows < length).sum())
    ids, mask = tokens.input_ids[:1, :length], tokens.attention_mask[:1, :length]
    places = None if tokens.position_ids is None else tokens.position_ids[:1, :length]
    return TokenBatch(ids, mask, tokens.rows[:num_rows], tokens.labels[:num_rows], places), num_rows


def _nothing(tokens: TokenBatch) -> TokenBatch:
    """Returns no sequence and no row."""
    places = None if tokens.position_ids is None else tokens.position_ids[:0]
    return TokenBatch(tokens.input_ids[:0], tokens.attention_mask[:0], tokens.rows[:0], tokens.labels[:0], places)
