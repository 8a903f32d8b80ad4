"""Counts of the kinds of spans in an alignment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xtoken_pl.alignment.spans import Spans


@dataclass(frozen=True)
class SpanStatistics:
    """Counts of tokens, spans and gaps in one text.

    Attributes:
        num_student_tokens, num_teacher_tokens: Tokens of the text.
        one_to_one, one_to_many, many_to_one, many_to_many: Spans, by their student tokens to teacher tokens.
        student_gaps, teacher_gaps: Tokens in no span.
    """

    num_student_tokens: int
    num_teacher_tokens: int
    one_to_one: int
    one_to_many: int
    many_to_one: int
    many_to_many: int
    student_gaps: int
    teacher_gaps: int

    @classmethod
    def from_spans(cls, spans: Spans, num_student_tokens: int, num_teacher_tokens: int) -> SpanStatistics:
        """Counts the spans between two sequences of the given numbers of tokens."""
        student_length = spans.student_end - spans.student_start
        teacher_length = spans.teacher_end - spans.teacher_start
        one_student, one_teacher = student_length == 1, teacher_length == 1
        return cls(
            num_student_tokens=num_student_tokens,
            num_teacher_tokens=num_teacher_tokens,
            one_to_one=int(np.sum(one_student & one_teacher)),
            one_to_many=int(np.sum(one_student & ~one_teacher)),
            many_to_one=int(np.sum(~one_student & one_teacher)),
            many_to_many=int(np.sum(~one_student & ~one_teacher)),
            student_gaps=num_student_tokens - int(student_length.sum()),
            teacher_gaps=num_teacher_tokens - int(teacher_length.sum()),
        )

    @property
    def kinds(self) -> dict[str, int]:
        """Number of spans of each kind, from ``one-to-one`` to ``many-to-many``."""
        return {
            "one-to-one": self.one_to_one,
            "one-to-many": self.one_to_many,
            "many-to-one": self.many_to_one,
            "many-to-many": self.many_to_many,
        }

    @property
    def num_spans(self) -> int:
        """Spans of all kinds."""
        return sum(self.kinds.values())
