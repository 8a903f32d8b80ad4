"""Local files are read as they are written, stored and streamed alike, and errors name file and row."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from small_models import packing_tokenizer

from xtoken_pl import CanonicalVocabulary, DistillDataModule, TextSource
from xtoken_pl.data import Windower, load_source
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.tokenized import make_windows
from xtoken_pl.utilities.errors import UserError

WINDOWER = Windower(CanonicalVocabulary.from_tokenizer(packing_tokenizer()), {}, 64)


@pytest.fixture(params=[False, True], ids=["stored", "streamed"])
def read(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """Reads all rows of a source; a row of one column as its value."""

    def rows(path: Path | str, **fields: Any) -> list[Any]:
        source = TextSource(path=str(path), **fields)
        loaded = load_source(source, streaming=request.param)
        columns = source.columns
        return [row[columns[0]] if len(columns) == 1 else [row[name] for name in columns] for row in loaded]

    return rows


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def texts(*values: Any) -> str:
    return lines(*({"text": value} for value in values))


# Which files ----------------------------------------------------------------------------------------------------------


def test_names_that_begin_with_a_dot_are_no_data(tmp_path: Path, read: Any) -> None:
    (tmp_path / "train.jsonl").write_text(texts("a"))
    for name in (".ipynb_checkpoints/train.jsonl", "sub/.hidden/b.jsonl", "sub/.c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(texts("no"))
    (tmp_path / "._train.jsonl").write_bytes(b"\x00\x05\x16\x07\xff")
    (tmp_path / ".DS_Store").write_bytes(b"\x00")
    (tmp_path / "train.jsonl~").write_text("no")
    assert read(tmp_path) == read(tmp_path / "*.jsonl") == read(tmp_path / "**/*.jsonl") == ["a"]


def test_a_directory_below_a_name_with_a_dot_is_read(tmp_path: Path, read: Any) -> None:
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "a.jsonl").write_text(texts("a"))
    assert read(tmp_path / ".data") == ["a"]


def test_files_are_read_in_the_order_of_their_names_and_once(
    tmp_path: Path, read: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b", "c", "a[1]"):
        (tmp_path / f"{name}.JSONL").write_text(texts(name))
    (tmp_path / "z.jsonl").symlink_to(tmp_path / "b.JSONL")
    (tmp_path / "README.md").write_text("no")
    (tmp_path / "folder.txt").mkdir()
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path) == ["a[1]", "b", "c"]
    assert f"1 names lead to files that are read already and are left out: {tmp_path}/z.jsonl" in caplog.text
    assert "1 files of" in caplog.text
    assert "README.md" in caplog.text


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("gz", gzip.compress),
        ("bz2", bz2.compress),
        ("xz", lzma.compress),
        ("zst", partial(pa.compress, codec="zstd", asbytes=True)),
    ],
)
def test_compressed_files_are_read(tmp_path: Path, read: Any, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(pack(texts("a", "é").encode()))
    assert read(tmp_path) == ["a", "é"]


def test_a_cut_compressed_file_is_named(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(texts("a" * 1000, "b").encode())[:-20])
    with pytest.raises(UserError, match=r"a.jsonl.gz' could not be read. Check that it is complete"):
        read(tmp_path)


def test_an_empty_file_among_others_has_no_rows(tmp_path: Path, read: Any) -> None:
    for name, content in (("a.jsonl", ""), ("b.jsonl", "\n \n"), ("c.jsonl", texts("c"))):
        (tmp_path / name).write_text(content)
    assert read(tmp_path) == ["c"]
    with pytest.raises(UserError, match=r"a.jsonl' is empty"):
        read(tmp_path / "a.jsonl")


def test_directories_that_are_links_are_read(tmp_path: Path, read: Any) -> None:
    for name in ("data", "elsewhere/part"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "elsewhere" / "part" / "a.jsonl").write_text(texts("a"))
    (tmp_path / "data" / "part").symlink_to(tmp_path / "elsewhere" / "part")
    assert read(tmp_path / "data") == ["a"]
    (tmp_path / "data" / "gone.jsonl").symlink_to(tmp_path / "nothing.jsonl")
    with pytest.raises(UserError, match=r"could not be read .*No such file .*gone.jsonl"):
        read(tmp_path / "data")


# Columns --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_files_may_differ_in_the_columns_that_are_not_read(tmp_path: Path, read: Any, kind: str) -> None:
    tables = [
        {"text": ["a"], "id": ["1"]},
        {"id": [2], "text": ["b"], "url": ["u"]},
        {"text": ["c"], "id": [[{"deep": 1}]]},
    ]
    for number, table in enumerate(tables):
        rows = datasets.Dataset.from_dict(table)
        path = str(tmp_path / f"{number}.{kind}")
        {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[kind](path)
    assert read(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_later_file_without_the_column_is_named_with_its_columns(tmp_path: Path, read: Any, kind: str) -> None:
    for number, name in enumerate(("text", "body")):
        rows = datasets.Dataset.from_dict({name: ["a"], "id": [1]})
        path = str(tmp_path / f"{number}.{kind}")
        {"jsonl": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[kind](path)
    with pytest.raises(UserError, match=rf"got 'text'; row 1 of '.*1.{kind}' has \['body', 'id'\]"):
        read(tmp_path)


# Values ---------------------------------------------------------------------------------------------------------------

ODD = [
    "2024-01-02",
    "2024-01-02T03:04:05Z",
    "007",
    "1e5",
    "NA",
    "None",
    "null",
    "nan",
    "true",
    "",
    " x ",
    "a\r\nb,\u2028c",
]


def test_strings_stay_as_they_are_written(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.jsonl").write_text(texts(*ODD))
    (tmp_path / "a.json").write_text("\n " + json.dumps([{"text": text} for text in ODD], indent=1))
    (tmp_path / "b.json").write_text(json.dumps(ODD))
    (tmp_path / "c.json").write_text("\n".join(json.dumps({"id": 1, "text": text}, indent=1) for text in ODD))
    quoted = ('"' + text.replace('"', '""') + '"' for text in ODD)
    (tmp_path / "a.csv").write_bytes(("text\r\n" + "\r\n".join(quoted)).encode())
    datasets.Dataset.from_dict({"text": ODD}).to_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "b.json", "c.json", "a.csv", "a.parquet"):
        assert read(tmp_path / name) == ODD, name
    assert read("csv", data_files=str(tmp_path / "*.csv")) == ODD
    assert read("json", data_files=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")]) == 2 * ODD


def test_unquoted_fields_of_csv_are_text(tmp_path: Path, read: Any) -> None:
    (tmp_path / "c.csv").write_text("text,text\na,b\n")
    with pytest.raises(UserError, match=r"c.csv' must name a column once, but 'text' occurs twice"):
        read(tmp_path / "c.csv")
    (tmp_path / "a.csv").write_text("id,text\n1,007\n2,NA\n3,\n\n4,1e5\n")
    assert read(tmp_path / "a.csv") == ["007", "NA", "", "1e5"]
    (tmp_path / "b.csv").write_text("id,text\n1,a\n2,b,c\n")
    with pytest.raises(UserError, match=r"as many fields as its header \(2\), row 2 has 3; quote"):
        read(tmp_path / "b.csv")


def test_completions_that_look_like_dates_stay_strings(tmp_path: Path, read: Any) -> None:
    rows = [{"prompt": "When?", "completion": "2024-01-02"}, {"prompt": "12", "completion": "2025-03-04"}]
    (tmp_path / "a.jsonl").write_text(lines(*rows))
    said = read(tmp_path / "a.jsonl", prompt_field="prompt", completion_field="completion")
    assert [[turn[0]["content"] for turn in row] for row in said] == [list(row.values()) for row in rows]


def test_line_ends_of_txt_become_line_feeds(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n\n")
    assert read(tmp_path / "a.txt") == ["one\ntwo\nthree\n\n"]
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\r\\nb"}\r\n{"text": "c"}\r\n')
    assert read(tmp_path / "a.jsonl") == ["a\r\nb", "c"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_byte_order_marks_are_no_text(tmp_path: Path, read: Any, encoding: str, kind: str) -> None:
    content = {"txt": "déjà \u4e00\n", "jsonl": texts("déjà \u4e00\n", "b"), "csv": 'text\n"déjà \u4e00\n"\n'}[kind]
    (tmp_path / f"a.{kind}").write_bytes(content.encode(encoding))
    assert read(tmp_path)[0] == "déjà \u4e00\n"


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (texts(*["a"] * 457, None, "b"), "holds NoneType in row 458 of '.*b.jsonl'; remove such rows"),
        (texts(None, "a"), "holds NoneType in row 1 of '.*b.jsonl'"),
        (texts("a", 5), "holds int in row 2 of '.*b.jsonl'"),
        (texts("a") + '{"text": \n', "row 2 is not valid JSON"),
        (texts("a") + "\n" + '{"text": "a", "text": "b"}\n', "row 3 is not valid JSON .*'text' occurs twice"),
        (texts("a") + "[1]\n", "row 2 of '.*b.jsonl' is a list; write"),
        (texts("a") + r'{"text": "\ud800 lone"}', r"half of a surrogate pair \('\\ud800'\) in row 2 of '.*b.jsonl'"),
        (texts("a") + "déjà", "row 2 is not valid JSON"),
        ('[{"text": "a"}, {"text": null}]', "holds NoneType in row 2 of '.*b.jsonl'"),
    ],
)
def test_an_odd_row_far_down_is_named_by_file_and_row(tmp_path: Path, read: Any, rows: str, expected: str) -> None:
    (tmp_path / "a.jsonl").write_text(texts("a"))
    (tmp_path / "b.jsonl").write_text(rows)
    with pytest.raises(UserError, match=expected) as raised:
        read(tmp_path)
    assert raised.type.__module__.startswith("xtoken_pl")


def test_bytes_that_are_not_utf_8_are_named_by_file(tmp_path: Path, read: Any) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_bytes("déjà".encode("latin-1"))
    with pytest.raises(UserError, match=r"must be UTF-8, .* but '.*b.txt' is not .*; convert it"):
        read(tmp_path)
    (tmp_path / "c.jsonl").write_bytes(texts("a").encode() + texts("déjà").encode("latin-1"))
    with pytest.raises(UserError, match=r"but row 2 of '.*c.jsonl' is not"):
        read(tmp_path / "c.jsonl")


def test_a_null_in_a_parquet_file_is_named_by_file_and_row(tmp_path: Path, read: Any) -> None:
    datasets.Dataset.from_dict({"text": ["a", "b", None]}).to_parquet(tmp_path / "a.parquet", batch_size=2)
    with pytest.raises(UserError, match=r"holds NoneType in row 3 of '.*a.parquet'"):
        read(tmp_path)


def test_a_changed_file_is_read_again(tmp_path: Path, read: Any) -> None:
    for value in ("a", "bc"):
        (tmp_path / "a.jsonl").write_text(texts(value))
        assert read(tmp_path) == [value]


def test_a_row_of_the_validation_texts_of_a_stream_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(texts("some text"))
    (tmp_path / "b.jsonl").write_text(texts("some text"))
    (tmp_path / "c.jsonl").write_text(texts(None))
    train, val = (TextSource(path=str(tmp_path / name)) for name in ("a.jsonl", "[bc].jsonl"))
    data = DistillDataModule(train, val, streaming=True)
    data.connect(WINDOWER.student, {})
    with pytest.raises(UserError, match=r"holds NoneType in row 1 of '.*c.jsonl'"):
        data.setup("fit")


@pytest.mark.parametrize("streaming", [False, True])
def test_an_odd_row_of_a_data_set_is_named(tmp_path: Path, streaming: bool) -> None:
    datasets.Dataset.from_dict({"text": [*["some text"] * 457, None]}).save_to_disk(tmp_path / "saved")
    (file,) = map(str, (tmp_path / "saved").glob("*.arrow"))
    source = TextSource(path="arrow", data_files=file)
    texts, maker = load_source(source, streaming=streaming), WindowMaker(source, WINDOWER)
    expected = r"NoneType in row 458 of 'arrow' \(split 'train'\)"
    with pytest.raises(UserError, match="row 58 of 58 of 'arrow'" if streaming else expected):
        list(make_windows(texts, maker, num_proc=None))


# Saved data sets ------------------------------------------------------------------------------------------------------


def test_a_directory_of_save_to_disk_is_loaded(tmp_path: Path, read: Any) -> None:
    rows = datasets.Dataset.from_dict({"text": list("abcd"), "id": [1, 2, 3, 4]})
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": rows, "test": rows.select([3])}).save_to_disk(tmp_path / "several")
    assert read(tmp_path / "one") == read(tmp_path / "several") == list("abcd")
    assert read(tmp_path / "several", split="test") == ["d"]
    assert read(tmp_path / "several", split="train[1:3]") == ["b", "c"]
    assert read(tmp_path / "one", split="train[25%:75%]") == ["b", "c"]
    assert read(tmp_path / "several", split="train+test") == list("abcdd")
    with pytest.raises(UserError, match=r"several' could not be read \(split 'val'\).*Unknown split"):
        read(tmp_path / "several", split="val")
    with pytest.raises(UserError, match=r"got 'body'; row 1 of '.*one' has \['id', 'text'\]"):
        read(tmp_path / "one", text_field="body")
