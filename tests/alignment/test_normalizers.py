"""Spans of any text under any normalizer on either side, and of the same text once it is rewritten for both."""

import unicodedata
from itertools import pairwise

import pytest
from aligned_texts import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from normalizing import DECOMPOSED, NORMALIZERS, TEXTS, VIETNAMESE, rewriting
from reference import spans_by_bytes

from xtoken_pl.alignment import SpanAligner
from xtoken_pl.tokenization.normalization import CommonNormalizer

NAMES = st.sampled_from(sorted(NORMALIZERS))


def aligned(name: str, other_name: str, text: str) -> tuple[list[bytes], list[bytes], list[tuple[int, int, int, int]]]:
    """Tokens of both sides, and their spans."""
    student, teacher = rewriting(name), rewriting(other_name, splits=True)
    ids, other_ids = student.encode([text])[0], teacher.encode([text])[0]
    found = rows(SpanAligner(student.tokenizer, teacher.tokenizer).align(ids, other_ids))
    return [student.token_bytes[i] for i in ids], [teacher.token_bytes[i] for i in other_ids], found


@settings(max_examples=400)
@given(name=NAMES, other_name=NAMES, text=TEXTS)
def test_every_span_has_the_same_bytes_on_both_sides(name: str, other_name: str, text: str) -> None:
    student, teacher, found = aligned(name, other_name, text)
    for a, b, c, d in found:
        assert b"".join(student[a:b]) == b"".join(teacher[c:d]) != b""
    for left, right in pairwise(found):
        assert left[1] <= right[0]
        assert left[3] <= right[2]


@settings(max_examples=200)
@given(text=TEXTS)
@pytest.mark.parametrize(
    "names",
    [("none", "NFC"), ("NFD", "none"), ("none", "NFKC"), ("NFKD", "none"), ("lowercase", "NFC"), ("NFC", "bytes")],
)
def test_every_token_of_a_text_that_was_rewritten_for_both_is_in_a_span(names: tuple[str, str], text: str) -> None:
    name, other_name = names
    common = CommonNormalizer({"student": rewriting(name), "teacher": rewriting(other_name, splits=True)})
    student, teacher, found = aligned(name, other_name, common(text))
    assert b"".join(student) == b"".join(teacher) == common(text).encode()
    assert found == spans_by_bytes(student, teacher)


def test_a_text_that_a_normalizer_rewrites_throughout_is_covered_as_its_composed_form_is() -> None:
    def coverage(text: str) -> float:
        student, _, found = aligned("none", "NFC", text)
        return sum(b - a for a, b, _, _ in found) / len(student)

    common = CommonNormalizer({"student": rewriting("none"), "teacher": rewriting("NFC", splits=True)})
    assert coverage(DECOMPOSED) < 0.6
    assert coverage(common(DECOMPOSED)) == coverage(VIETNAMESE) == 1


def test_decomposed_text_of_real_tokenizers_is_covered_once_it_is_rewritten(llama3_from_qwen3: SpanAligner) -> None:
    sides = {"student": llama3_from_qwen3.student, "teacher": llama3_from_qwen3.teacher}

    def coverage(text: str) -> float:
        ids, other_ids = (side.encode([text])[0] for side in sides.values())
        spans = llama3_from_qwen3.align(ids, other_ids)
        return float((spans.student_end - spans.student_start).sum() / len(ids))

    text = unicodedata.normalize("NFD", "Việt Nam có khí hậu nhiệt đới ") * 20
    assert coverage(text) < 0.1
    assert coverage(CommonNormalizer(sides)(text)) == 1
