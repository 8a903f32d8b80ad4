"""Texts that a normalizer rewrites, with unknown bytes, or with nothing in common: only what differs is a gap."""

import unicodedata
from itertools import pairwise

import pytest
from aligned_texts import PROSE, TEXTS, TOPICS, both, bounds, encoded, random_text, rows, tokens
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from reference import spans_by_bytes

from xtoken_pl.alignment import SpanAligner

# A normalizer rewrites the text: Qwen3 composes to NFC

COMPOSED = "éÅüñçöǖệấ가각한글ΐйὄ"
REWRITTEN = st.one_of(
    st.text(st.sampled_from(COMPOSED), min_size=1, max_size=6).map(lambda text: unicodedata.normalize("NFD", text)),
    st.text(st.sampled_from("\u212b\u2126\u0958\u0344\u1f71"), min_size=1, max_size=3),
)


def check_that_gaps_stay_within(
    aligner: SpanAligner, before: str, piece: str, after: str, student_piece: bytes, teacher_piece: bytes
) -> None:
    """Asserts that all text is aligned except between the nearest shared boundaries around the rewritten piece."""
    student_ids, teacher_ids, student, teacher = both(aligner, before + piece + after)
    assert b"".join(student) == before.encode() + student_piece + after.encode()
    assert b"".join(teacher) == before.encode() + teacher_piece + after.encode()
    found = rows(aligner.align(student_ids, teacher_ids))
    for a, b, c, d in found:
        assert b"".join(student[a:b]) == b"".join(teacher[c:d]) != b""

    student_bounds, teacher_bounds = bounds(student), bounds(teacher)
    low = max(b for b in {*student_bounds} & {*teacher_bounds} if b <= len(before.encode()))
    head, other_head = student_bounds.index(low), teacher_bounds.index(low)
    from_end = {student_bounds[-1] - b for b in student_bounds} & {teacher_bounds[-1] - b for b in teacher_bounds}
    high = max(b for b in from_end if b <= len(after.encode()))
    tail, other_tail = student_bounds.index(student_bounds[-1] - high), teacher_bounds.index(teacher_bounds[-1] - high)

    assert [span for span in found if span[0] < head or span[2] < other_head] == spans_by_bytes(
        student[:head], teacher[:other_head]
    )
    assert [span for span in found if span[1] > tail or span[3] > other_tail] == [
        (a + tail, b + tail, c + other_tail, d + other_tail)
        for a, b, c, d in spans_by_bytes(student[tail:], teacher[other_tail:])
    ]


@settings(max_examples=300)
@given(before=TEXTS, piece=REWRITTEN, after=TEXTS)
def test_gaps_stay_within_the_rewritten_stretch(
    llama3_from_qwen3: SpanAligner, before: str, piece: str, after: str
) -> None:
    before, after = (unicodedata.normalize("NFC", text) for text in (before, after))
    composed = unicodedata.normalize("NFC", piece)
    assume(piece != composed)
    assume(not {*composed} & {*after})  # a text that repeats what was rewritten: see below
    assume(unicodedata.normalize("NFC", before + piece + after) == before + composed + after)
    check_that_gaps_stay_within(llama3_from_qwen3, before, piece, after, piece.encode(), composed.encode())


@pytest.mark.parametrize(
    ("before", "piece", "after"),
    [
        ("The ", "cafe\u0301", " opens at 8."),
        ("", "e\u0301", ""),
        ("length ", "\u212b", " and more text"),
        ("x = ", "e\u0301", "é"),
        ("one ", "cafe\u0301", " café café café"),
        ("a table\n", "\u1112\u1161\u11ab" * 20, " | 1234 | 5678 |"),
        ("", "e\u0301", "foobar 1 q\u0301foobar 2"),
    ],
)
def test_gaps_stay_within_the_rewritten_stretch_of_known_texts(
    llama3_from_qwen3: SpanAligner, before: str, piece: str, after: str
) -> None:
    composed = unicodedata.normalize("NFC", piece)
    check_that_gaps_stay_within(llama3_from_qwen3, before, piece, after, piece.encode(), composed.encode())


def test_gaps_stay_within_the_rewritten_stretch_where_the_text_repeats_it(llama3_from_qwen3: SpanAligner) -> None:
    before, piece, after = "x = ", "e\u0301" * 3, "é" * 6 + " abc"
    check_that_gaps_stay_within(llama3_from_qwen3, before, piece, after, piece.encode(), "ééé".encode())


def test_tokens_between_two_rewritten_places_are_aligned(llama3_from_qwen3: SpanAligner) -> None:
    text = "a cafe\u0301 with 12 tables and 345 \u212b long seats"
    student_ids, teacher_ids, student, _ = both(llama3_from_qwen3, text)
    found = rows(llama3_from_qwen3.align(student_ids, teacher_ids))
    aligned = [b"".join(student[a:b]) for a, b, _, _ in found]
    assert aligned == [b"a", b" with", b" ", b"12", b" tables", b" and", b" ", b"345", b" long", b" seats"]


# Unknown bytes


@given(before=PROSE, unknown=st.text("\x04\x06\x13\U00050000\U0009abcd", min_size=1, max_size=4), after=PROSE)
@example(before="", unknown="\x04", after="tricks")  # one span of several tokens on both sides
@example(before="tricks ", unknown="\x04" * 100, after="\ntricks\nlooked\nnaming\n")
def test_bytes_that_a_vocabulary_lacks_leave_a_gap_around_them(
    smollm2_from_llama3: SpanAligner, before: str, unknown: str, after: str
) -> None:
    known = unknown.encode().translate(None, delete=b"\x04\x06\x13\xf1\xf2")
    check_that_gaps_stay_within(smollm2_from_llama3, before, unknown, after, known, unknown.encode())


# Texts that have nothing in common


@pytest.mark.parametrize(
    ("text", "other_text"),
    [
        (random_text("abcdefghij ", 300), random_text("一丁七万丈三上下不与", 200)),
        (TOPICS[:50_000], random_text("一丁七万丈三上下不与", 20_000)),
        (TOPICS[:50_000], "a" * 50_000),
        (TOPICS[:15_000], TOPICS[15_000:30_000]),
        (TOPICS[:15_000], TOPICS[:15_000][::-1]),
        ("ab" * 10_000, "ba" * 9_999),
    ],
    ids=["no common byte", "no common byte, long", "one letter", "another text", "reversed", "periodic"],
)
def test_texts_with_nothing_in_common_have_no_wrong_spans(
    llama3_from_qwen3: SpanAligner, text: str, other_text: str
) -> None:
    aligner = llama3_from_qwen3
    student_ids, teacher_ids = encoded(aligner.student, text), encoded(aligner.teacher, other_text)
    found = rows(aligner.align(student_ids, teacher_ids))
    student, teacher = tokens(aligner.student, student_ids.tolist()), tokens(aligner.teacher, teacher_ids.tolist())
    for a, b, c, d in found:
        assert b"".join(student[a:b]) == b"".join(teacher[c:d]) != b""
    for left, right in pairwise(found):
        assert left[1] <= right[0]
        assert left[3] <= right[2]
    if not {*text} & {*other_text}:
        assert found == []
