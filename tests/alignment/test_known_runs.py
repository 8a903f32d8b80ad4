"""Spans of two sequences within runs of bytes that are known to be equal."""

from __future__ import annotations

from itertools import pairwise

from aligned_texts import TEXTS, both, equal_bytes, reproduced, rows
from hypothesis import assume, given
from hypothesis import strategies as st

from xtoken_pl.alignment import SpanAligner
from xtoken_pl.alignment.byte_merge import Run, chained_runs

RUNS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 5)), max_size=6)


def placed(gaps: list[tuple[int, int, int]]) -> list[Run]:
    """Runs from what is left out before each of them on either side, and their lengths."""
    runs, i, j = list[Run](), 0, 0
    for skip, other_skip, length in gaps:
        i, j = i + skip, j + other_skip
        runs.append((i, j, length))
        i, j = i + length, j + length
    return runs


@given(first=RUNS.map(placed), second=RUNS.map(placed))
def test_chained_runs_relate_what_both_chains_relate(first: list[Run], second: list[Run]) -> None:
    found = chained_runs(first, second)
    onward = equal_bytes(second)
    assert equal_bytes(found) == {i: onward[j] for i, j in equal_bytes(first).items() if j in onward}
    assert all(length > 0 for _, _, length in found)
    assert [*found] == sorted(found)


@given(first=RUNS.map(placed))
def test_a_cut_in_either_chain_stays(first: list[Run]) -> None:
    ones = [(i, i, 1) for i in range(60)]
    assert [length for _, _, length in chained_runs(ones, first)] == [1] * sum(run[2] for run in first)


@given(text=TEXTS)
def test_one_run_of_the_whole_text_gives_the_usual_spans(llama3_from_qwen3: SpanAligner, text: str) -> None:
    student_ids, teacher_ids, _, _ = reproduced(llama3_from_qwen3, text)
    found = llama3_from_qwen3.align_within(student_ids, teacher_ids, [(0, 0, len(text.encode()))])
    assert rows(found) == rows(llama3_from_qwen3.align(student_ids, teacher_ids))


@given(text=TEXTS, places=st.lists(st.integers(0, 60), max_size=4))
def test_no_span_reaches_beyond_its_run(llama3_from_qwen3: SpanAligner, text: str, places: list[int]) -> None:
    student_ids, teacher_ids, student, teacher = reproduced(llama3_from_qwen3, text)
    size = len(text.encode())
    cuts = sorted({0, size, *(place for place in places if place < size)})
    runs = [(low, low, high - low) for low, high in pairwise(cuts)]
    found = rows(llama3_from_qwen3.align_within(student_ids, teacher_ids, runs))
    for a, b, c, d in found:
        assert b"".join(student[a:b]) == b"".join(teacher[c:d]) != b""
        start, end = len(b"".join(student[:a])), len(b"".join(student[:b]))
        assert not [cut for cut in cuts if start < cut < end]
    usual = rows(llama3_from_qwen3.align(student_ids, teacher_ids))
    assert {*found} <= {*usual}
    whole = [span for span in usual if not _is_cut(student, span[:2], cuts)]
    assert found == whole


def _is_cut(student: list[bytes], span: tuple[int, int], cuts: list[int]) -> bool:
    start, end = (len(b"".join(student[:token])) for token in span)
    return any(start < cut < end for cut in cuts)


def test_skipped_bytes_are_no_part_of_the_first_span(llama2_style_from_llama3: SpanAligner) -> None:
    student_ids, teacher_ids, _, _ = both(llama2_style_from_llama3, "Hello, world")
    runs = [(0, 0, len("Hello, world"))]
    found = llama2_style_from_llama3.align_within(student_ids, teacher_ids, runs, skipped=(1, 0))
    assert rows(found) == rows(llama2_style_from_llama3.align(student_ids, teacher_ids))


@given(ids=st.lists(st.integers(0, 1000), min_size=1, max_size=5))
def test_without_runs_there_are_no_spans(llama3_from_qwen3: SpanAligner, ids: list[int]) -> None:
    assume(ids)
    assert rows(llama3_from_qwen3.align_within(ids, ids, [])) == []
