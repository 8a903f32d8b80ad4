"""SimCT bound to small tokenizers, among them those of a published example, and the plans that it makes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from prefix_pairs import TOKENIZER_PAIRS, Pair
from span_rows import Spans, block_of
from split_tokenizers import STUDENT_TOKENS, TEACHER_TOKENS, split_tokenizer
from torch import Tensor

from xtoken_pl import SimCT
from xtoken_pl.batch import SpanBatch, TeacherBatch, TokenBatch
from xtoken_pl.losses import SpanBlock
from xtoken_pl.losses.simct import Units
from xtoken_pl.tokenization import CanonicalVocabulary

every_pair = pytest.mark.parametrize("name", TOKENIZER_PAIRS)


@cache
def make(name: str, units: Units = "path") -> Pair:
    student, teacher = (make_tokenizer() for make_tokenizer in TOKENIZER_PAIRS[name])
    loss: Any = SimCT(units=units)
    loss.bind(*(CanonicalVocabulary.from_tokenizer(tokenizer) for tokenizer in (student, teacher)), None)
    return Pair.of(student, teacher, loss=loss)


def batch_of(labels: tuple[Tensor, Tensor], spans: Spans) -> tuple[TokenBatch, TeacherBatch]:
    """A batch as far as a planner of units reads it."""
    block = block_of(*(torch.zeros(len(each), 2) for each in labels), labels, spans)
    student, teacher = block.student, block.teacher
    relations = SpanBatch(student.first, student.length, teacher.first, teacher.length, student.span, teacher.span)
    tokens = [TokenBatch(each[None], torch.ones_like(each[None]), torch.arange(len(each)), each) for each in labels]
    return tokens[0], TeacherBatch(tokens[1], relations)


def planned(loss: SimCT, rows: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], spans: Spans) -> SpanBlock:
    return replace(block_of(*rows, labels, spans), plan=loss.planner(*batch_of(labels, spans)))


@cache
def bread() -> tuple[CanonicalVocabulary, CanonicalVocabulary]:
    student, teacher = (split_tokenizer(list(texts)) for texts in (STUDENT_TOKENS, TEACHER_TOKENS))
    return CanonicalVocabulary.from_tokenizer(student), CanonicalVocabulary.from_tokenizer(teacher)
