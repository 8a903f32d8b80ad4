"""Sources, windows and batches: nothing of a text is lost, and both sides of every span are the same bytes."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from xtoken_pl import BytePrefixKL, CanonicalVocabulary, DistillDataModule, TextSource
from xtoken_pl.data import Windower, collate, load_source
from xtoken_pl.prefix_map import PrefixPlan
from xtoken_pl.utilities.errors import UserError

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


# Windows ------------------------------------------------------------------------------------------------------------


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
def test_no_side_of_a_window_is_longer_than_the_limit(texts: list[str], length: int) -> None:
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


def test_windows_are_as_long_as_the_limit_allows() -> None:
    rows = rows_of(Windower(STUDENT, {"split": TEACHERS["split"]}, 64)([TEXTS[0] * 3]))
    lengths = [max(len(row["student_ids"]), len(row["split/ids"])) for row in rows]
    assert len(rows) > 5
    assert min(lengths[:-1]) > 64 - 12  # no shorter than the next span would be long


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


def test_stretch_that_cannot_be_cut_is_kept_for_cross_entropy_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    # One teacher token of thousands of bytes: no boundary in common for longer than a window.
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
    with pytest.raises(ValueError, match="sequence_length must be at least 2 for one span of the student, got 1"):
        Windower(STUDENT, TEACHERS, 1)


# Batches ------------------------------------------------------------------------------------------------------------


def test_rows_and_spans_of_a_batch_agree_with_a_slow_listing() -> None:
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


# Sources ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records = [{"text": text, "other": index} for index, text in enumerate(TEXTS[:4])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    datasets.Dataset.from_list(records).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "txt").mkdir()
    for index, text in enumerate(TEXTS[:4]):
        (tmp_path / "txt" / f"{index}.txt").write_text(text)
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("path", ["a.jsonl", "a.parquet", "txt", "txt/*.txt"])
def test_every_kind_of_file_gives_the_same_texts(folder: Path, path: str, streaming: bool) -> None:
    source = TextSource(path=str(folder / path))
    assert [row["text"] for row in load_source(source, streaming=streaming)] == TEXTS[:4]


def test_builder_with_data_files_is_loaded(folder: Path) -> None:
    source = TextSource(path="json", data_files=str(folder / "a.jsonl"), split="train[:2]")
    assert [row["text"] for row in load_source(source)] == TEXTS[:2]


@pytest.mark.parametrize("path", ["no/such/file.jsonl", "./nothing", "nothing/*.txt"])
def test_missing_file_is_named(path: str) -> None:
    with pytest.raises(UserError, match="working folder"):
        load_source(TextSource(path=path))


def test_missing_text_field_is_named_with_the_columns(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"got 'body'; .* has \['other', 'text'\]"):
        load_source(TextSource(path=str(folder / "a.jsonl"), text_field="body"))


def test_text_field_that_holds_no_text_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold strings, but 'other' .* holds int"):
        load_source(TextSource(path=str(folder / "a.jsonl"), text_field="other"))


def test_empty_data_set_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": []}).to_parquet(tmp_path / "empty.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("empty.parquet", "empty.jsonl"):
        for streaming in (False, True):
            with pytest.raises(ValueError, match=f"{name}' .*(is empty|Check that it .*holds texts)"):
                load_source(TextSource(path=str(tmp_path / name)), streaming=streaming)


def test_unknown_split_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="split 'validation'"):
        load_source(TextSource(path=str(folder / "a.jsonl"), split="validation"))


def test_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{not json\n")
    with pytest.raises(ValueError, match=r"bad.jsonl' could not be read"):
        load_source(TextSource(path=str(tmp_path / "bad.jsonl")))


def test_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has none"):
        load_source(TextSource(path=str(tmp_path)))


def test_folder_of_several_kinds_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"of one kind.*\['.jsonl', '.parquet', '.txt'\]"):
        load_source(TextSource(path=str(folder)))


# The data module ----------------------------------------------------------------------------------------------------


def data_module(folder: Path, **options: Any) -> DistillDataModule:
    source = TextSource(path=str(folder / "a.jsonl"))
    module = DistillDataModule(source, source, sequence_length=64, batch_size=4, num_workers=0, **options)
    module.connect(STUDENT, TEACHERS)
    return module


def test_tokenization_and_alignment_are_done_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data_module(folder)
    first.prepare_data()
    first.setup("fit")
    monkeypatch.setattr(Windower, "__call__", lambda *_: pytest.fail("tokenized again"))
    second = data_module(folder)
    second.prepare_data()
    second.setup("fit")
    assert second.datasets["train"][3]["student_ids"].tolist() == first.datasets["train"][3]["student_ids"].tolist()


def test_another_length_is_not_served_from_the_cache(folder: Path) -> None:
    data_module(folder).setup("fit")
    source = TextSource(path=str(folder / "a.jsonl"))
    other = DistillDataModule(source, sequence_length=32)
    other.connect(STUDENT, TEACHERS)
    other.setup("fit")
    assert max(len(row["student_ids"]) for row in other.datasets["train"]) <= 32


def test_streaming_gives_the_same_batches(folder: Path) -> None:
    stored, streamed = data_module(folder), data_module(folder, streaming=True)
    for module in (stored, streamed):
        module.setup("fit")
    for ours, theirs in zip(stored.val_dataloader(), streamed.val_dataloader(), strict=True):
        assert torch.equal(ours.student.input_ids, theirs.student.input_ids)
        assert torch.equal(ours.teachers["split"].spans.teacher_first, theirs.teachers["split"].spans.teacher_first)


def test_training_batches_are_shuffled_and_complete(folder: Path) -> None:
    module = data_module(folder)
    module.setup("fit")
    torch.manual_seed(0)
    seen = [ids.tobytes() for batch in module.train_dataloader() for ids in batch.student.input_ids.numpy()]
    assert len(seen) == len(module.datasets["train"])
    assert seen != [ids.tobytes() for batch in module.val_dataloader() for ids in batch.student.input_ids.numpy()]


def test_texts_that_share_no_span_are_refused_before_training(tmp_path: Path) -> None:
    # The teacher has neither bos nor eos, and each text is one token: nothing stands before it to predict it from.
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    backend = Tokenizer.from_str(splitting_tokenizer().backend_tokenizer.to_str())
    teacher = CanonicalVocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    module = data_module(tmp_path)
    module.connect(STUDENT, {"short": teacher})
    with pytest.raises(ValueError, match="no span in common with teacher 'short'"):
        module.setup("fit")


def test_data_module_without_tokenizers_says_what_to_call(folder: Path) -> None:
    with pytest.raises(UserError, match=r"call connect\(\) first"):
        DistillDataModule(TextSource(path=str(folder / "a.jsonl"))).setup("fit")


@pytest.mark.parametrize("option", ["batch_size", "sequence_length"])
def test_sizes_below_one_are_refused(folder: Path, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be >= 1, got 0"):
        DistillDataModule(TextSource(path=str(folder / "a.jsonl")), **{option: 0})


def test_test_loader_without_texts_says_what_to_set(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"set data\.test\.path"):
        data_module(folder).setup("test")


def test_training_stream_has_no_end_and_another_order_each_time(folder: Path) -> None:
    module = data_module(folder, streaming=True, shuffle_buffer=100)
    module.setup("fit")
    num_batches = len(list(module.val_dataloader()))
    stream = iter(module.train_dataloader())
    passes = [[next(stream).student.input_ids.sum().item() for _ in range(num_batches)] for _ in range(2)]
    assert passes[0] != passes[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_that_are_all_empty_are_refused(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    with pytest.raises(ValueError, match="must hold some text"):
        data_module(tmp_path, streaming=streaming).setup("fit")


def test_missing_text_in_a_later_row_is_named(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in ("a", None, "b")]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    with pytest.raises(ValueError, match="got NoneType at place 1 of 3"):
        data_module(tmp_path).setup("fit")


def test_option_of_a_data_set_beside_a_local_path_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="revision belongs to a data set"):
        load_source(TextSource(path=str(folder / "a.jsonl"), revision="main"))


def test_plans_are_made_in_the_workers_of_the_loader(tmp_path: Path) -> None:
    student, teacher = (CanonicalVocabulary.from_tokenizer(make()) for make in (packing_tokenizer, splitting_tokenizer))
    loss = BytePrefixKL()
    loss.bind(student, teacher, None)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:3]))
    data = DistillDataModule(TextSource(path=str(path)), sequence_length=64, num_workers=1)
    data.connect(student, {"t": teacher}, {"t": pickle.loads(pickle.dumps(loss.planner))})
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    plan = batch.teachers["t"].plan
    assert isinstance(plan, PrefixPlan)
    assert plan.boundary.count("levels") > 10
    # As it is made in this process, dataclasses and all.
    again = loss.planner(batch.student, batch.teachers["t"])
    assert torch.equal(plan.boundary.level_teacher, cast(PrefixPlan, again).boundary.level_teacher)
