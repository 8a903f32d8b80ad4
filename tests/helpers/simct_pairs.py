"""SimCT bound to small tokenizers, among them those of a published example, and the plans that it makes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from prefix_pairs import Pair
from small_models import packing_tokenizer, reversing_tokenizer, splitting_tokenizer
from span_rows import Spans, block_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl import SimCT
from xtoken_pl.batch import SpanBatch, TeacherBatch, TokenBatch
from xtoken_pl.losses import SpanBlock
from xtoken_pl.losses.simct import Units
from xtoken_pl.tokenization import CanonicalVocabulary

PAIRS = {
    "packing from splitting": (packing_tokenizer, splitting_tokenizer),
    "splitting from packing": (splitting_tokenizer, packing_tokenizer),
    "reversing from packing": (reversing_tokenizer, packing_tokenizer),
}
every_pair = pytest.mark.parametrize("name", PAIRS)


@cache
def make(name: str, units: Units = "path") -> Pair:
    student, teacher = (make_tokenizer() for make_tokenizer in PAIRS[name])
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


def word_tokenizer(words: list[str], merges: list[tuple[str, str]]) -> CanonicalVocabulary:
    """Letters, words, and what merges make of the letters."""
    merged = ["".join(merge) for merge in merges]
    letters = sorted({letter for text in (*words, *merged) for letter in text})
    vocabulary = list(dict.fromkeys([*letters, *merged, *words]))
    ids = {token: number for number, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(ids, merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return CanonicalVocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


@cache
def bread() -> tuple[CanonicalVocabulary, CanonicalVocabulary]:
    merges = [("B", "r"), ("e", "a"), ("ea", "d"), ("ead", "s"), ("ea", "k")]
    return word_tokenizer(["Cat"], merges), word_tokenizer(["Bread", "Breads", "Break", "Cat"], [])
