"""Sources: every kind of file gives the same texts, and whatever cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from small_models import TEXTS

from xtoken_pl import TextSource
from xtoken_pl.data import load_source
from xtoken_pl.utilities.errors import UserError


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
def test_an_empty_file_among_others_is_warned_of(folder: Path, streaming: bool) -> None:
    (folder / "txt/empty.txt").write_text("")
    with pytest.warns(UserWarning, match=r"1 of the 5 files of .* are empty: .*empty\.txt"):
        load_source(TextSource(path=str(folder / "txt")), streaming=streaming)


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
    with pytest.raises(UserError, match="working directory"):
        load_source(TextSource(path=path))


def test_missing_text_field_is_reported_with_the_existing_columns(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"got 'body'; .* has \['other', 'text'\]"):
        load_source(TextSource(path=str(folder / "a.jsonl"), text_field="body"))


def test_text_field_without_strings_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold strings, but 'other' holds int in row 1 of '.*a.jsonl'"):
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


def test_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{not json\n")
    with pytest.raises(ValueError, match=r"bad.jsonl' could not be read"):
        load_source(TextSource(path=str(tmp_path / "bad.jsonl")))


def test_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has none"):
        load_source(TextSource(path=str(tmp_path)))


def test_folder_of_several_kinds_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"of one kind.*\['.jsonl', '.parquet', '.txt'\]"):
        load_source(TextSource(path=str(folder)))


def test_data_set_option_with_a_local_path_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="revision belongs to a data set"):
        load_source(TextSource(path=str(folder / "a.jsonl"), revision="main"))
