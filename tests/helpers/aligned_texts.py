"""Texts for alignment tests, and their tokens on both sides."""

import pydoc_data.topics
import re

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import Span, spans_by_bytes

from xtoken_pl.alignment import SpanAligner, Spans
from xtoken_pl.alignment.byte_merge import Run
from xtoken_pl.tokenization import CanonicalVocabulary

TOPICS = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))

NUMERALS = ["1", "12", "123", "1234", "3.14159", "2026-05-31", "0x1F", "\n", "\n\n", " ", "\t"]
FOREIGN = ["naïve", "übergrößen", "Привет,", "שלום", "数字", "日本語の", "한국어", "हिन्दी", "ไทย", "🙂", "½", "…", "—"]
WORDS = re.findall(r"\S+", TOPICS[:20_000])
ODD = "éß中語한אשไ🙂👩👧\u200d\u0301\u0308\u0323\u00a0\u200b\ufeff\U00050000\U0010ffff\x00\x04Ġ▁"
MIXED = st.one_of(st.sampled_from("abzABZ  \n\t\r.,_-'\"<|>"), st.sampled_from("0123456789"), st.sampled_from(ODD))
PROSE = st.lists(st.one_of(map(st.sampled_from, (WORDS, NUMERALS, FOREIGN))), max_size=16).map(" ".join)
TEXTS = st.one_of(st.text(max_size=24), st.text(MIXED, max_size=40), PROSE)


def tokens(vocabulary: CanonicalVocabulary, ids: list[int]) -> list[bytes]:
    """Bytes of the tokens, without the space that the tokenizer prepends to the text."""
    found = [vocabulary.token_bytes[ident] for ident in ids]
    if vocabulary.components.dummy_prefix and found:
        assert found[0].startswith(b" ")
        found[0] = found[0][1:]
    return found


def both(aligner: SpanAligner, text: str) -> tuple[list[int], list[int], list[bytes], list[bytes]]:
    """Token ids and tokens of a text on both sides."""
    student_ids, teacher_ids = aligner.student.encode([text])[0], aligner.teacher.encode([text])[0]
    return student_ids, teacher_ids, tokens(aligner.student, student_ids), tokens(aligner.teacher, teacher_ids)


def reproduced(aligner: SpanAligner, text: str) -> tuple[list[int], list[int], list[bytes], list[bytes]]:
    """The same as :func:`both`; rejects texts that a side does not reproduce."""
    student_ids, teacher_ids, student, teacher = both(aligner, text)
    assume(b"".join(student) == b"".join(teacher) == text.encode())
    return student_ids, teacher_ids, student, teacher


def random_text(alphabet: str, length: int) -> str:
    return "".join(np.random.default_rng(0).choice(list(alphabet), size=length))


def encoded(vocabulary: CanonicalVocabulary, text: str) -> NDArray[np.int64]:
    return np.array(vocabulary.encode([text])[0])


def rows(spans: Spans) -> list[Span]:
    return [tuple(row) for row in spans.to_array().tolist()]


def bounds(parts: list[bytes]) -> list[int]:
    """Byte offsets at which tokens begin and end."""
    return [0, *np.cumsum([len(part) for part in parts], dtype=int).tolist()]


def reference_spans(student: list[bytes], teacher: list[bytes]) -> list[Span]:
    """`spans_by_bytes`, for sequences whose first token may have lost its only byte to the dummy prefix."""
    skip = [int(bool(side) and side[0] == b"") for side in (student, teacher)]
    found = spans_by_bytes(student[skip[0] :], teacher[skip[1] :])
    return [(a + skip[0], b + skip[0], c + skip[1], d + skip[1]) for a, b, c, d in found]


def equal_bytes(runs: list[Run]) -> dict[int, int]:
    """The place of every byte of runs on the second side, by that on the first."""
    return {i + step: j + step for i, j, length in runs for step in range(length)}
