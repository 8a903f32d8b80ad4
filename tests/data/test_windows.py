"""Windows and batches: no text is lost, and both sides of every span have the same bytes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from xtoken_pl import CanonicalVocabulary
from xtoken_pl.data import Windower, collate

STUDENT = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
TEACHERS = {
    "split": CanonicalVocabulary.from_tokenizer(splitting_tokenizer()),
    "coarse": CanonicalVocabulary.from_tokenizer(packing_tokenizer(1500)),
}
words = st.sampled_from(["the ", "12345", " tokenizer", "\n\n", "é", "数字", "👩‍👧", "  ", "def f(x):", "\t"])
texts = st.lists(st.lists(words, max_size=40).map("".join), min_size=1, max_size=3)


def rows_of(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [{key: column[index] for key, column in columns.items()} for index in range(len(columns["student_ids"]))]


def text_of(vocabulary: CanonicalVocabulary, ids: list[int]) -> bytes:
    return b"".join(vocabulary.token_bytes[token] for token in ids)


@given(texts=texts, length=st.integers(24, 60))
def test_windows_hold_every_text_whole_on_every_side(texts: list[str], length: int) -> None:
    rows = rows_of(Windower(STUDENT, TEACHERS, length)(texts))
    expected = "".join(texts).encode()
    assert b"".join(text_of(STUDENT, row["student_ids"]) for row in rows) == expected
    for name, vocabulary in TEACHERS.items():
        assert b"".join(text_of(vocabulary, row[f"{name}/ids"]) for row in rows) == expected
        for row in rows:
            assert text_of(vocabulary, row[f"{name}/ids"]) == text_of(STUDENT, row["student_ids"])


@given(texts=texts, length=st.integers(24, 60))
def test_no_side_of_a_window_exceeds_sequence_length(texts: list[str], length: int) -> None:
    for row in rows_of(Windower(STUDENT, TEACHERS, length)(texts)):
        assert max(len(row["student_ids"]), *(len(row[f"{name}/ids"]) for name in TEACHERS)) <= length


@given(texts=texts, length=st.integers(24, 60))
def test_spans_of_a_window_cover_it_with_equal_bytes_on_both_sides(texts: list[str], length: int) -> None:
    for row in rows_of(Windower(STUDENT, TEACHERS, length)(texts)):
        for name, vocabulary in TEACHERS.items():
            spans = np.asarray(row[f"{name}/spans"]).reshape(-1, 4)
            covered = [token for a, b, _, _ in spans for token in range(a, b)]
            assert covered == list(range(len(STUDENT.prefix_ids), len(row["student_ids"])))
            for a, b, c, d in spans:
                assert text_of(STUDENT, row["student_ids"][a:b]) == text_of(vocabulary, row[f"{name}/ids"][c:d])


def test_windows_are_as_long_as_sequence_length_allows() -> None:
    rows = rows_of(Windower(STUDENT, {"split": TEACHERS["split"]}, 64)([TEXTS[0] * 3]))
    lengths = [max(len(row["student_ids"]), len(row["split/ids"])) for row in rows]
    assert len(rows) > 5
    assert min(lengths[:-1]) > 64 - 12  # shorter by less than the length of the next span


def test_text_starts_with_bos_on_sides_that_have_one_and_ends_with_eos() -> None:
    rows = rows_of(Windower(STUDENT, TEACHERS, 48)([TEXTS[0][:600]]))
    assert len(rows) > 2
    assert all(row["student_ids"][0] == STUDENT.roles["bos"] for row in rows)
    assert all(row["loss_mask"] == [0] + [1] * (len(row["student_ids"]) - 1) for row in rows)
    assert not any(row["split/ids"][0] in TEACHERS["split"].roles.values() for row in rows)
    ends = [row["student_ids"][-1] == STUDENT.roles["eos"] for row in rows]
    assert ends == [False] * (len(rows) - 1) + [True]
    last = np.asarray(rows[-1]["split/spans"]).reshape(-1, 4)[-1]
    assert last.tolist() == [
        len(rows[-1]["student_ids"]) - 1,
        len(rows[-1]["student_ids"]),
        len(rows[-1]["split/ids"]) - 1,
        len(rows[-1]["split/ids"]),
    ]


def test_empty_text_makes_no_window() -> None:
    assert rows_of(Windower(STUDENT, TEACHERS, 32)(["", "a", ""]))[0]["student_ids"][1:-1] == STUDENT.encode(["a"])[0]
    assert len(Windower(STUDENT, TEACHERS, 32)(["", "a", ""])["student_ids"]) == 1


def test_stretch_without_a_boundary_is_kept_for_cross_entropy_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    # One teacher token is longer than a window: there is no common boundary within it.
    backend = Tokenizer.from_str(splitting_tokenizer().backend_tokenizer.to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end_of_text|>")
    long_token = "0123456789" * 20
    tokenizer.add_tokens([long_token])
    teacher = CanonicalVocabulary.from_tokenizer(tokenizer)
    text = "before " + long_token + " after"
    with caplog.at_level(logging.WARNING):
        rows = rows_of(Windower(STUDENT, {"long": teacher}, 16)([text]))
    assert "1 stretches of text without a common token boundary" in caplog.text
    assert b"".join(text_of(STUDENT, row["student_ids"]) for row in rows) == text.encode()
    assert max(len(row["student_ids"]) for row in rows) <= 16
    assert len(collate(rows, ["long"]).teachers["long"].spans) > 0


def test_sequence_length_without_room_for_a_span_is_refused() -> None:
    with pytest.raises(ValueError, match="sequence_length must be at least 2 to hold a span of the student, got 1"):
        Windower(STUDENT, TEACHERS, 1)


# Batches ------------------------------------------------------------------------------------------------------------


def test_rows_and_spans_of_a_batch_match_a_slow_reference() -> None:
    rows = rows_of(Windower(STUDENT, TEACHERS, 40)([TEXTS[0][:500], TEXTS[1][:70]]))
    batch = collate(rows, list(TEACHERS))
    student_positions = []  # (window, token) of every row
    for index, row in enumerate(rows):
        student_positions += [(index, token) for token in range(1, len(row["student_ids"])) if row["loss_mask"][token]]
    width = batch.student.input_ids.shape[1]
    assert batch.student.rows.tolist() == [index * width + token - 1 for index, token in student_positions]
    assert batch.student.labels.tolist() == [rows[index]["student_ids"][token] for index, token in student_positions]
    assert batch.student.attention_mask.sum(1).tolist() == [len(row["student_ids"]) for row in rows]
    for name in TEACHERS:
        view = batch.teachers[name]
        width = view.tokens.input_ids.shape[1]
        expected = [
            (index, *span)
            for index, row in enumerate(rows)
            for span in np.asarray(row[f"{name}/spans"]).reshape(-1, 4).tolist()
            if span[0] >= 1 and span[2] >= 1
        ]
        assert len(view.spans) == len(expected)
        for k, (index, a, b, c, d) in enumerate(expected):
            first, length = int(view.spans.student_first[k]), int(view.spans.student_length[k])
            assert student_positions[first : first + length] == [(index, token) for token in range(a, b)]
            assert (view.spans.student_span[first : first + length] == k).all()
            first, length = int(view.spans.teacher_first[k]), int(view.spans.teacher_length[k])
            teacher_rows = view.tokens.rows[first : first + length].tolist()
            assert teacher_rows == [index * width + token - 1 for token in range(c, d)]
            assert view.tokens.labels[first : first + length].tolist() == list(rows[index][f"{name}/ids"][c:d])
            assert (view.spans.teacher_span[first : first + length] == k).all()


def test_batch_moves_with_all_its_tensors() -> None:
    batch = collate(rows_of(Windower(STUDENT, TEACHERS, 40)([TEXTS[0][:200]])), list(TEACHERS)).to("meta")
    assert batch.student.rows.device.type == "meta"
    assert batch.teachers["split"].spans.teacher_span.device.type == "meta"
    assert batch.cuts.blocks(16, 4)
