"""The references themselves, against closed forms computed by hand and published figures."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    common_pairs,
    dense_projection,
    projection_rows,
    spans_by_bytes,
    spans_by_dynamic_programme,
)


def cut(text: bytes, ends: set[int]) -> list[bytes]:
    """The text cut at the given byte offsets; those that are not inside the text are ignored."""
    offsets = [0, *sorted(end for end in ends if 0 < end < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(offsets) if end > start]


# Spans


@pytest.mark.parametrize(
    ("student", "teacher", "spans"),
    [
        ([b"a", b"b"], [b"a", b"b"], [(0, 1, 0, 1), (1, 2, 1, 2)]),
        ([b"abc", b"d"], [b"a", b"b", b"c", b"d"], [(0, 1, 0, 3), (1, 2, 3, 4)]),
        ([b"a", b"b", b"cd"], [b"ab", b"cd"], [(0, 2, 0, 1), (2, 3, 1, 2)]),
        ([b"ab", b"c"], [b"a", b"bc"], [(0, 2, 0, 2)]),
        ([b"\xc3", b"\xa9"], [b"\xc3\xa9"], [(0, 2, 0, 1)]),
        ([], [], []),
    ],
)
def test_spans_end_where_both_sides_end_a_token(
    student: list[bytes], teacher: list[bytes], spans: list[tuple[int, int, int, int]]
) -> None:
    assert spans_by_bytes(student, teacher) == spans


@given(st.text(max_size=12), st.sets(st.integers(1, 40)), st.sets(st.integers(1, 40)))
def test_byte_spans_are_the_pieces_of_the_text_cut_at_the_common_ends(
    text: str, student_ends: set[int], teacher_ends: set[int]
) -> None:
    data = text.encode()
    student, teacher = cut(data, student_ends), cut(data, teacher_ends)
    spans = spans_by_bytes(student, teacher)
    pieces = cut(data, student_ends & teacher_ends)
    assert [b"".join(student[span[0] : span[1]]) for span in spans] == pieces
    assert [b"".join(teacher[span[2] : span[3]]) for span in spans] == pieces


def test_byte_spans_of_different_texts_are_refused() -> None:
    with pytest.raises(AssertionError, match="same bytes"):
        spans_by_bytes([b"a"], [b"b"])


@pytest.mark.parametrize(
    ("student", "teacher", "score", "spans"),
    [
        ([b"a", b"b"], [b"a", b"b"], 6.0, [(0, 1, 0, 1), (1, 2, 1, 2)]),
        ([b"abc"], [b"a", b"b", b"c"], 4.5, [(0, 1, 0, 3)]),
        ([b"ab", b"c", b"d"], [b"abcd"], 4.5, [(0, 3, 0, 1)]),
        ([b"x"], [b"y"], -3.0, []),
        ([b"ab", b"c"], [b"a", b"bc"], -6.0, []),  # many-to-many is no move
        ([b"<bos>", b"a", b"bc"], [b"a", b"b", b"c"], 4.5, [(1, 2, 0, 1), (2, 3, 1, 3)]),
        ([b"a", b"bc"], [b"a", b"x", b"b", b"c"], 4.5, [(0, 1, 0, 1), (1, 2, 2, 4)]),
        ([b"a", b"b"], [], -3.0, []),
        ([], [], 0.0, []),
    ],
)
def test_dynamic_programme_scores_and_spans(
    student: list[bytes], teacher: list[bytes], score: float, spans: list[tuple[int, int, int, int]]
) -> None:
    assert spans_by_dynamic_programme(student, teacher) == (score, spans)
    mirrored = [(span[2], span[3], span[0], span[1]) for span in spans]
    assert spans_by_dynamic_programme(teacher, student) == (score, mirrored)


def test_dynamic_programme_joins_at_most_max_span_tokens() -> None:
    pieces = [b"a", b"b", b"c", b"d", b"e"]
    assert spans_by_dynamic_programme([b"abcde"], pieces) == (-9.0, [])
    assert spans_by_dynamic_programme([b"abcde"], pieces, max_span=5) == (7.5, [(0, 1, 0, 5)])


def test_dynamic_programme_breaks_a_tie_by_the_latest_match() -> None:
    assert spans_by_dynamic_programme([b"a"], [b"a", b"a"]) == (1.5, [(0, 1, 1, 2)])  # as much as (0, 1, 0, 1)


# The projection


def rows_of(
    student: list[bytes | None],
    teacher: list[bytes | None],
    encoded: list[int] | None,
    max_tokens: int = 4,
    top: int = 4,
) -> dict[int, dict[int, float]]:
    """Rows of tokens without roles, every encoded token being `encoded`."""
    return projection_rows(student, teacher, lambda _: encoded, {}, {}, max_tokens=max_tokens, top=top)


@pytest.mark.parametrize(
    "published",
    [[1.0], [0.909, 0.091], [0.9009, 0.0901, 0.0090], [0.9000, 0.0900, 0.0090, 0.0009]],
)
def test_multi_token_rows_have_the_published_weights(published: list[float]) -> None:
    row = rows_of([b"x"], [b"a", b"b", b"c", b"d"], list(range(len(published))))[0]
    weights = [row[t] for t in range(len(published))]
    assert len(row) == len(published)
    assert weights == pytest.approx(published, abs=1e-4)  # printed figures, some of them cut and not rounded
    assert sum(weights) == pytest.approx(1.0)
    assert all(weight == pytest.approx(10 * following) for weight, following in pairwise(weights))


@pytest.mark.parametrize("encoded", [None, [], [0, 1, 2, 3, 0]])
def test_a_token_the_teacher_cannot_spell_in_max_tokens_has_no_row(encoded: list[int] | None) -> None:
    assert rows_of([b"x"], [b"a", b"b", b"c", b"d"], encoded) == {}


def test_duplicates_in_a_row_add_up_before_the_row_keeps_its_top() -> None:
    # 1, 0.1, 0.01, 0.001, 0.0001 times beta on teacher tokens 0, 1, 0, 2, 3: 1.01, 0.1, 0.001, 0.0001
    row = rows_of([b"x"], [b"a", b"b", b"c", b"d"], [0, 1, 0, 2, 3], max_tokens=5, top=3)[0]
    assert row == pytest.approx({0: 1.01 / 1.111, 1: 0.1 / 1.111, 2: 0.001 / 1.111})


def test_equal_bytes_take_the_lowest_teacher_id_and_ignore_the_encoder() -> None:
    assert rows_of([b"b"], [b"a", b"b", b"b"], [0, 0]) == {0: {1: 1.0}}


def test_special_tokens_match_by_role_only() -> None:
    student: list[bytes | None] = [None, None, None]
    teacher: list[bytes | None] = [None, None, b"<s>"]
    rows = projection_rows(student, teacher, lambda _: [2], {0: "bos", 1: "pad"}, {0: "eos", 1: "bos"})
    assert rows == {0: {1: 1.0}}  # no counterpart for pad, none for the special token without a role


def test_dense_projection_places_every_weight() -> None:
    dense = dense_projection({0: {2: 1.0}, 2: {0: 0.25, 1: 0.75}}, 3, 3)
    assert dense.dtype == torch.float64
    assert dense.tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.25, 0.75, 0.0]]


# The common set


TOKENS: dict[str, Any] = {
    "student_tokens": [b"a", b"b", None, b"xy", b"a", b"xyz", b"z", None],
    "teacher_tokens": [b"b", b"a", b"a", None, b"x", None, b"y"],
    "student_roles": {2: "bos", 7: "pad"},
    "teacher_roles": {5: "bos", 3: "bos"},
}


def test_common_pairs_strict() -> None:
    assert common_pairs(**TOKENS) == [(0, 1), (1, 0), (2, 3)]


def test_common_pairs_prefer_tokens_that_are_no_byte_pieces() -> None:
    pairs = common_pairs(**TOKENS, student_byte_pieces=frozenset({0}), teacher_byte_pieces=frozenset({1}))
    assert pairs == [(1, 0), (2, 3), (4, 2)]
    # byte pieces are kept where there is nothing else
    pairs = common_pairs(**TOKENS, student_byte_pieces=frozenset({0, 4}), teacher_byte_pieces=frozenset({0, 1, 2}))
    assert pairs == [(0, 1), (1, 0), (2, 3)]


@pytest.mark.parametrize(
    ("rows", "byte_pieces", "expected"),
    [
        # the heaviest teacher token; the lowest one on a tie
        ({3: {4: 0.9, 6: 0.1}}, set(), [(3, 4)]),
        ({3: {6: 0.5, 4: 0.5}}, set(), [(3, 4)]),
        # 3 and 5 want 4: the highest weight, whatever the id, and the loser does not turn to 6
        ({3: {4: 0.8, 6: 0.2}, 5: {4: 0.9, 6: 0.1}}, set(), [(5, 4)]),
        ({3: {4: 0.8, 6: 0.2}, 5: {4: 0.9, 6: 0.1}}, {5}, [(5, 4)]),
        # equal weights: no byte piece, then the lowest id
        ({3: {4: 0.9, 6: 0.1}, 5: {4: 0.9, 6: 0.1}}, set(), [(3, 4)]),
        ({3: {4: 0.9, 6: 0.1}, 5: {4: 0.9, 6: 0.1}}, {3}, [(5, 4)]),
        # 1 is exact for 0: neither a row of its own nor another token of weight 1 takes it away
        ({0: {1: 1.0}, 1: {6: 1.0}, 6: {0: 1.0}}, {1}, []),
        # 4 has an exact candidate that 0 keeps: its row does not bring it back
        ({4: {6: 1.0}}, set(), []),
    ],
)
def test_common_pairs_enlarged(
    rows: dict[int, dict[int, float]], byte_pieces: set[int], expected: list[tuple[int, int]]
) -> None:
    exact = [(0, 1), (1, 0), (2, 3)]
    assert common_pairs(**TOKENS, rows=rows, student_byte_pieces=byte_pieces) == sorted(exact + expected)
