"""The dynamic programme, for stretches whose bytes differ, against the paper's score and the byte merge."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from aligned_texts import TEXTS, reproduced, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Span, spans_by_dynamic_programme

from xtoken_pl.alignment import SpanAligner
from xtoken_pl.alignment.dynamic_programme import MAX_PLACES, align_stretch

SMALL_TOKENS = st.lists(st.sampled_from([b"a", b"b", b"aa", b"ab", b"ba", b"aab", b"abab", b"c"]), max_size=MAX_PLACES)


def score(found: list[Span], student: list[bytes], teacher: list[bytes]) -> float:
    """D of an alignment: +3 for a match, 1.5·k for one to k, -1.5 for a token in no span (a mismatch: two)."""
    num_matched = sum(b - a + d - c for a, b, c, d in found)
    gains = [3.0 if b - a == d - c == 1 else 1.5 * max(b - a, d - c) for a, b, c, d in found]
    return sum(gains) - 1.5 * (len(student) + len(teacher) - num_matched)


def stretch_spans(student: list[bytes], teacher: list[bytes]) -> list[Span]:
    return [tuple(row) for row in align_stretch(student, teacher).tolist()]


@settings(max_examples=300)
@given(student=SMALL_TOKENS, teacher=SMALL_TOKENS)
def test_the_stretch_alignment_is_valid_and_the_best_by_the_papers_score(
    student: list[bytes], teacher: list[bytes]
) -> None:
    found = stretch_spans(student, teacher)
    best, _ = spans_by_dynamic_programme(student, teacher)
    assert score(found, student, teacher) == best
    for a, b, c, d in found:
        assert (b - a, d - c) in {(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (4, 1)}
        assert b"".join(student[a:b]) == b"".join(teacher[c:d])
    for left, right in pairwise(found):
        assert left[1] <= right[0]
        assert left[3] <= right[2]


@settings(max_examples=300)
@given(text=st.text("ab", min_size=1, max_size=MAX_PLACES), data=st.data())
def test_the_stretch_alignment_is_the_best_for_two_cuts_of_one_text(text: str, data: st.DataObject) -> None:
    sides = []
    for _ in range(2):
        cuts = data.draw(st.sets(st.integers(1, len(text))))
        sides.append(
            [text[a:b].encode() for a, b in pairwise(sorted({0, len(text)} | {c for c in cuts if c < len(text)}))]
        )
    student, teacher = sides
    assert score(stretch_spans(student, teacher), student, teacher) == spans_by_dynamic_programme(student, teacher)[0]


def groups(spans: list[Span], max_uneven: int = 3) -> Iterator[list[Span]]:
    """Groups neighbouring spans that the dynamic programme can express; at most `max_uneven` are not one-to-one.

    With so few of them these spans are its best choice: each costs 1.5 against the score of one-to-one matches, 1.5 per
    token, while two texts of equal bytes can only be shifted by leaving out a token on both sides, which costs 2·3.
    """
    group: list[Span] = []
    uneven = 0
    for a, b, c, d in spans:
        is_even = (b - a, d - c) == (1, 1)
        if min(b - a, d - c) > 1 or max(b - a, d - c) > 4 or (not is_even and uneven == max_uneven):
            yield group
            group, uneven = [], 0
        if min(b - a, d - c) == 1 and max(b - a, d - c) <= 4:
            group.append((a, b, c, d))
            uneven += not is_even
    yield group


@settings(max_examples=300)
@given(text=TEXTS)
def test_the_stretch_alignment_agrees_with_the_byte_merge_where_both_apply(aligner: SpanAligner, text: str) -> None:
    student_ids, teacher_ids, student, teacher = reproduced(aligner, text)
    for group in groups(rows(aligner.align(student_ids, teacher_ids))):
        if group:
            (start, _, other_start, _), (_, end, _, other_end) = group[0], group[-1]
            found = stretch_spans(student[start:end], teacher[other_start:other_end])
            assert [(a + start, b + start, c + other_start, d + other_start) for a, b, c, d in found] == group


@pytest.mark.parametrize(("student", "teacher"), [([], []), ([], [b"a"]), ([b"a"], [])])
def test_a_stretch_without_tokens_on_a_side_has_no_spans(student: list[bytes], teacher: list[bytes]) -> None:
    assert align_stretch(student, teacher).shape == (0, 4)


def test_a_stretch_that_is_too_long_is_skipped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = [b"a", b"b"] * 1500, [b"a", b"c"] * 1500
    assert len(align_stretch(student, teacher)) == 0
    assert "3000 x 3000 tokens" in caplog.text


def test_a_long_stretch_is_aligned_at_the_right_places_although_its_bytes_repeat() -> None:
    student, teacher = [b"a", b"_", b"b", b"_"] * 250, [b"a", b"_", b"B", b"_"] * 250
    assert stretch_spans(student, teacher) == [(i, i + 1, i, i + 1) for i in range(1000) if i % 4 != 2]


def test_a_span_of_the_stretch_alignment_has_at_most_four_tokens_on_a_side() -> None:
    assert stretch_spans([b"abcd"], [b"a", b"b", b"c", b"d"]) == [(0, 1, 0, 4)]
    assert stretch_spans([b"abcde"], [b"a", b"b", b"c", b"d", b"e"]) == []
