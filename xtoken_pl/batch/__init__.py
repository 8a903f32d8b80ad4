"""The typed batch: tokens, spans, plans of losses, known rows, and the columns of a window."""

from xtoken_pl.batch.blocks import Block, RowCuts
from xtoken_pl.batch.columns import (
    DOMAIN,
    LOSS_MASK,
    NO_WINDOW,
    PROMPT,
    STUDENT_IDS,
    cached_column,
    prompt_column,
    starts_column,
    teacher_columns,
)
from xtoken_pl.batch.distill_batch import DistillBatch, StepCounts, as_steps
from xtoken_pl.batch.domains import Domain
from xtoken_pl.batch.known_rows import AllRows, KnownRows, RowArrays, SpanStartRows, TopTokens
from xtoken_pl.batch.movable import Movable
from xtoken_pl.batch.prompts import Prompt
from xtoken_pl.batch.types import (
    SPAN_KINDS,
    LossPlan,
    Planner,
    SpanBatch,
    SpanKind,
    TeacherBatch,
    TokenBatch,
    sum_by_span,
)

__all__ = [
    "DOMAIN",
    "LOSS_MASK",
    "NO_WINDOW",
    "PROMPT",
    "SPAN_KINDS",
    "STUDENT_IDS",
    "AllRows",
    "Block",
    "DistillBatch",
    "Domain",
    "KnownRows",
    "LossPlan",
    "Movable",
    "Planner",
    "Prompt",
    "RowArrays",
    "RowCuts",
    "SpanBatch",
    "SpanKind",
    "SpanStartRows",
    "StepCounts",
    "TeacherBatch",
    "TokenBatch",
    "TopTokens",
    "as_steps",
    "cached_column",
    "prompt_column",
    "starts_column",
    "sum_by_span",
    "teacher_columns",
]
