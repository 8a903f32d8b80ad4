"""Span alignment: which tokens of the student and of a teacher cover the same bytes of a text."""

from xtoken_pl.alignment.aligner import SpanAligner
from xtoken_pl.alignment.spans import Spans
from xtoken_pl.alignment.statistics import SpanStatistics

__all__ = ["SpanAligner", "SpanStatistics", "Spans"]
