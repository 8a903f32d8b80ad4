"""Reads the rows of local files as they are written: no column is converted, and errors name file and row.

The builders of `datasets` infer types: a column of `2024-01-02` becomes dates, `007` in a CSV file a number, `null` in
the first row a column of nulls. All kinds of files are therefore read here, stored and streamed by the same code.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import lzma
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import reason_of, type_in_words

#: Rows that are read together, each with its number in the file, from 1. The position of a stream counts chunks: their
#: sizes are those of the builders of `datasets`, so that checkpoints of earlier versions resume at the same row.
Chunk = Iterable[tuple[int, dict[str, Any]]]
_JSON_CHUNK_BYTES, _CSV_CHUNK_ROWS = 10 << 20, 10_000
#: Rows of a parquet file that are Python objects at the same time.
SLICE_ROWS = 1000
_Item = TypeVar("_Item")

_WHITE_SPACE = " \t\r\n"
#: Name of each compression, by the first bytes of a file.
_CODECS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz"}


def read_chunks(path: str, kind: str, columns: Collection[str], optional: Collection[str] = ()) -> Iterator[Chunk]:
    """Yields the rows of a file.

    Args:
        path: The file, which may be compressed (gzip, zstd, xz, bzip2).
        kind: ``text``, ``json``, ``csv`` or ``parquet``.
        columns: Names of the columns to read. Rows may have more, and lack those that the file lacks.
        optional: Names of columns to read where the file has them.

    Raises:
        UserError: If the file cannot be read, or is not of this kind.
    """
    chunks = {
        "text": lambda: _texts(path),
        "json": lambda: _json(path, {*columns, *optional}),
        "csv": lambda: _csv(path, columns),
        "parquet": lambda: _parquet(path, columns, optional),
    }[kind]()
    yield from _with_path(chunks, path)


def _with_path(items: Iterator[_Item], path: str) -> Iterator[_Item]:
    """Yields chunks or rows; an error of reading them names the file."""
    while (item := _next(items, path)) is not None:
        yield item


def _next(items: Iterator[_Item], path: str) -> _Item | None:
    try:
        return next(items, None)
    except UnicodeDecodeError as error:
        raise _not_text(repr(path), error) from error
    except (OSError, EOFError, lzma.LZMAError, csv.Error, pa.ArrowException) as error:
        raise UserError(
            f"{path!r} could not be read. Check that it is complete, and of the kind that its name says. Reason: "
            f"{type(error).__name__}: {reason_of(error)}"
        ) from error


# Kinds of files -------------------------------------------------------------------------------------------------------


def _texts(path: str) -> Iterator[Chunk]:
    with _open_text(path) as file:
        yield [(1, {"text": file.read()})]


def _json(path: str, columns: Collection[str]) -> Iterator[Chunk]:
    """Reads JSON Lines, a list of objects or of texts, or objects of several lines each."""
    chunk: list[tuple[int, dict[str, Any]]] = []
    num_bytes = 0
    is_first = True
    with _open_lines(path) as lines:
        for number, line in enumerate(lines, start=1):
            num_bytes += len(line)
            if line.strip():
                row = _value(line, path, number, is_first=is_first)
                if row is None or (is_first and isinstance(row, list)):
                    yield _whole_json(path, columns, line + b"".join(lines), number)
                    return
                is_first = False
                chunk.append((number, _object(row, path, columns, number)))
            if num_bytes > _JSON_CHUNK_BYTES:
                yield chunk
                chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _value(line: bytes, path: str, number: int, *, is_first: bool) -> Any:
    """Reads the value of a line; None if the first line is not one by itself."""
    try:
        return _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        raise _not_text(f"row {number:,} of {path!r}", error) from error
    except json.JSONDecodeError as error:
        if is_first:
            return None
        raise _not_json(path, error.msg, number) from error


def _whole_json(path: str, columns: Collection[str], content: bytes, first_line: int) -> Chunk:
    """Reads values that follow each other, over any number of lines; the items of a list are rows."""
    text, rows = content.decode().strip(_WHITE_SPACE), []
    position = 0
    while position < len(text):
        try:
            value, position = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise _not_json(path, error.msg, first_line + error.lineno - 1) from error
        items = value if isinstance(value, list) else [value]
        rows += [{"text": item} if isinstance(item, str) and items is value else item for item in items]
        while text[position : position + 1] and text[position] in _WHITE_SPACE:
            position += 1
    return [(number, _object(row, path, columns, number)) for number, row in enumerate(rows, start=1)]


def _csv(path: str, columns: Collection[str]) -> Iterator[Chunk]:
    csv.field_size_limit(sys.maxsize)
    with _open_text(path, newline="") as file:
        records = filter(None, csv.reader(file, strict=True))  # without blank lines
        header = next(records, [])
        if double := next((name for name in columns if header.count(name) > 1), None):
            raise UserError(f"the header of {path!r} must name a column once, but {double!r} occurs twice; rename one")
        chunk: list[tuple[int, dict[str, Any]]] = []
        for number, record in enumerate(records, start=1):
            if len(record) != len(header):
                raise UserError(
                    f"every row of {path!r} must have as many fields as its header ({len(header)}), row {number:,} has "
                    f"{len(record)}; quote fields that contain commas"
                )
            chunk.append((number, dict(zip(header, record, strict=True))))
            if len(chunk) == _CSV_CHUNK_ROWS:
                yield chunk
                chunk = []
        if chunk:
            yield chunk


def _parquet(path: str, columns: Collection[str], optional: Collection[str]) -> Iterator[Chunk]:
    number = 1
    with pq.ParquetFile(path) as file:
        names = set(file.schema_arrow.names)
        # If a column is missing, all are read: the message about the first row names them.
        read = sorted(names & {*columns, *optional}) if names.issuperset(columns) else None
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=read)
            slices = table.to_batches(max_chunksize=SLICE_ROWS)
            rows = (row for part in slices for row in part.to_pylist())
            yield zip(count(number), _with_path(rows, path), strict=False)
            number += table.num_rows


# Bytes, lines and values ----------------------------------------------------------------------------------------------


@contextmanager
def _open_bytes(path: str) -> Iterator[io.BufferedReader]:
    """Opens a file, and decompresses it if its first bytes say that it is compressed."""
    with Path(path).open("rb") as file:
        head = file.read(6)
    codec = next((name for magic, name in _CODECS.items() if head.startswith(magic)), None)
    unpack: Any = lzma.open if codec == "xz" else partial(pa.input_stream, compression=codec)
    with io.BufferedReader(unpack(path)) as buffered:
        yield buffered


@contextmanager
def _open_text(path: str, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """Opens a file as text, without a byte order mark; by default every line end is read as a line feed."""
    with _open_bytes(path) as file:
        # Detects UTF-16 and UTF-32, and the byte order mark of UTF-8.
        encoding = json.detect_encoding(file.peek(4)[:4])
        with io.TextIOWrapper(file, encoding=encoding, newline=newline) as text:
            yield text


@contextmanager
def _open_lines(path: str) -> Iterator[Iterator[bytes]]:
    """Opens a file as lines of UTF-8, without a byte order mark."""
    with _open_bytes(path) as file:
        encoding = json.detect_encoding(file.peek(4)[:4])
        if encoding == "utf-8-sig":
            file.read(len(codecs.BOM_UTF8))
        if encoding in ("utf-8", "utf-8-sig"):
            yield iter(file)
        else:
            yield (line.encode() for line in io.TextIOWrapper(file, encoding=encoding))


class _Ambiguous(dict[str, Any]):
    """A JSON object in which a name occurs twice."""

    double: str


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        found = _Ambiguous(found)
        found.double = next(name for name in names if names.count(name) > 1)
    return found


def _integer(digits: str) -> int | float:
    """Converts an integer. One of more digits than Python converts becomes infinity, which a column may not hold."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_mapping, parse_int=_integer)


def _doubles(value: Any) -> Iterator[str]:
    """Yields names that occur twice in an object of a JSON value."""
    if isinstance(value, _Ambiguous):
        yield value.double
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _doubles(part)


def _object(row: Any, path: str, columns: Collection[str], number: int) -> dict[str, Any]:
    """Checks that a row is an object, in which and in whose ``columns`` no name occurs twice."""
    if not isinstance(row, dict):
        raise UserError(
            f"every row must be a JSON object, but row {number:,} of {path!r} is {type_in_words(str(type(row)))}; "
            'write texts as {"text": "..."}'
        )
    read = {name: row[name] for name in columns if name in row}
    double = row.double if isinstance(row, _Ambiguous) else next(_doubles(read), None)
    if double is not None:
        raise _not_json(path, f"the name {double!r} occurs twice in an object", number)
    return row


def _not_json(path: str, reason: str, line: int) -> UserError:
    return UserError(
        f"{path!r} could not be read: row {line:,} is not valid JSON ({reason}). Check that the file is complete, "
        "and write one object per line"
    )


def _not_text(what: str, error: UnicodeDecodeError) -> UserError:
    return UserError(
        f"texts must be UTF-8, or UTF-16 with a byte order mark, but {what} is not ({error.reason}); convert it (with "
        "iconv, say), or give another file"
    )
