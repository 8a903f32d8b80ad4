"""Kinds of files: what a row of each may hold, and how many rows are in memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xtoken_pl import TextSource
from xtoken_pl.data import load_source
from xtoken_pl.data.sources.files import read_chunks
from xtoken_pl.utilities.errors import UserError

#: More digits than Python converts to an integer.
LONG = "1" * 5000


def read(path: Path) -> list[Any]:
    return [row["text"] for row in load_source(TextSource(path=str(path)), streaming=True)]


def test_blank_lines_before_the_header_of_a_csv_file_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n\r\nid,text\n\n1,a\n2,b\n")
    assert read(tmp_path / "a.csv") == ["a", "b"]
    (tmp_path / "a.csv").write_text("\nid,text\n1,a\n2\n")
    with pytest.raises(UserError, match=r"as its header \(2\), row 2 has 1"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("indent", [None, 1])
def test_an_integer_of_thousands_of_digits_is_named_by_file_and_row(tmp_path: Path, indent: int | None) -> None:
    rows = "\n".join(json.dumps(row, indent=indent) for row in ({"text": "a", "id": 0}, {"text": 0, "id": 1}))
    (tmp_path / "a.json").write_text(rows.replace("0", LONG))
    with pytest.raises(UserError, match=r"text_field must hold strings.* in row 2 of '.*a.json'"):
        read(tmp_path)
    (tmp_path / "a.json").write_text(rows.replace('"text": 0', '"text": "b"').replace("0", LONG))
    assert read(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("start", ["", "\n{\n"])
def test_a_name_may_occur_twice_in_a_column_that_is_not_read(tmp_path: Path, start: str) -> None:
    double = '{"tags": {"a": [{"b": 1, "b": 2}]}, "text": "x"}'
    (tmp_path / "a.json").write_text(double.replace("{", start, 1) if start else double)
    assert read(tmp_path) == ["x"]
    messages = '{"messages": [{"role": "user", "content": "a", "content": "b"}]}\n'
    (tmp_path / "a.json").write_text(messages)
    with pytest.raises(UserError, match=r"row 1 is not valid JSON .*'content' occurs twice"):
        list(read_chunks(str(tmp_path / "a.json"), "json", ["messages"]))
    assert list(map(list, read_chunks(str(tmp_path / "a.json"), "json", ["text"])))
    (tmp_path / "a.json").write_text('{"text": "x", "id": 1, "id": 2}\n')
    with pytest.raises(UserError, match=r"row 1 is not valid JSON .*'id' occurs twice"):
        read(tmp_path)


def test_few_rows_of_a_large_row_group_are_in_memory(tmp_path: Path) -> None:
    num_rows = 30_000
    rows = [[{"role": "user", "content": str(number)}] for number in range(num_rows)]
    pq.write_table(pa.table({"messages": rows}), tmp_path / "a.parquet", row_group_size=num_rows - 1)
    del rows

    def peak(convert: Any) -> int:
        """Highest number of bytes of Python objects while a chunk is read."""
        chunks = read_chunks(str(tmp_path / "a.parquet"), "parquet", ["messages"])
        tracemalloc.start()
        sizes = [convert(chunk) for chunk in chunks]
        (_, highest), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
        assert sizes == [num_rows - 1, 1]
        return highest

    assert 4 * peak(lambda chunk: sum(1 for _ in chunk)) < peak(lambda chunk: len(list(chunk)))


def test_rows_of_parquet_are_numbered_over_slices_and_groups(tmp_path: Path) -> None:
    texts = [str(number) for number in range(2500)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=1500)
    chunks = [list(chunk) for chunk in read_chunks(str(tmp_path / "a.parquet"), "parquet", ["text"])]
    assert [len(chunk) for chunk in chunks] == [1500, 1000]  # one chunk per row group: positions of streams count them
    assert [row for chunk in chunks for row in chunk] == [(n + 1, {"text": text}) for n, text in enumerate(texts)]
    assert read(tmp_path) == texts


def test_a_text_of_parquet_that_is_not_utf_8_is_named_by_file(tmp_path: Path) -> None:
    spoiled = pa.array([b"a", "d\u00e9j\u00e0".encode("latin-1")]).view(pa.string())
    pq.write_table(pa.table({"text": spoiled}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"must be UTF-8, .* but '.*a.parquet' is not"):
        read(tmp_path)
