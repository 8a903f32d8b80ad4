"""Loads local files as a data set of `datasets`: one builder for every kind of file, stored or streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from datasets import (
    ArrowBasedBuilder,
    BuilderConfig,
    Dataset,
    DatasetInfo,
    Features,
    IterableDataset,
    Split,
    SplitGenerator,
    Value,
    Version,
)
from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.data.chats.conversations import CONTEXT_COLUMNS, check_context, read_row
from xtoken_pl.data.chats.messages import Turn, stored_flag, stored_reasoning
from xtoken_pl.data.chats.tool_calls import as_json
from xtoken_pl.data.sources.files import SLICE_ROWS, read_chunks
from xtoken_pl.data.sources.local_files import file_stamps
from xtoken_pl.data.sources.row_errors import RowError

if TYPE_CHECKING:
    from xtoken_pl.data.sources.text_source import TextSource

_FIELDS = ("text_field", "messages_field", "prompt_field", "completion_field", "tools_field", "teacher_field")
# Fields of the source that do not change what is read of a row; they have these values in the copy on disk.
_NOT_READ: dict[str, Any] = {
    **{"path": "", "split": "train", "name": None, "data_files": None, "revision": None},
    **{"learn_turn_end": False, "learn_reasoning": True, "learn_tool_calls": True},
    **{"weight": None, "teachers": None, "alphas": None},
}


def load_local(files: list[str], kind: str, source: TextSource, *, streaming: bool) -> Dataset | IterableDataset:
    """Loads files as a data set with the columns of a source: checked texts, or checked lists of messages.

    Args:
        files: Files, in their order.
        kind: ``text``, ``json``, ``csv`` or ``parquet``.
        source: Source of the files.
        streaming: Read the files during iteration, without a copy on disk.

    Raises:
        UserError: If a file cannot be read, or a row holds no text or conversation; when streaming, during iteration.
    """
    # The copy on disk depends on the columns, not on where and how they are used.
    columns = replace(source, **_NOT_READ)
    stamps = file_stamps(files)
    if len(files) > (num_empty := sum(size == 0 for _, size, _ in stamps)) > 0:
        empty = ", ".join(path for path, size, _ in stamps if size == 0)
        rank_zero_warn(f"{num_empty} of the {len(files)} files of {source.path!r} are empty: {empty}")
    builder = LocalTexts(files=files, stamps=stamps, kind=kind, source=columns)
    if streaming:
        return builder.as_streaming_dataset(split=source.split)
    builder.download_and_prepare()
    return builder.as_dataset(split=source.split)


@dataclass
class LocalTextsConfig(BuilderConfig):
    """Files, their sizes and times, their kind, and the columns to read; the copy on disk is found by them."""

    files: list[str] | None = None
    stamps: list[tuple[str, int, int]] | None = None
    kind: str = ""
    source: TextSource | None = None


class LocalTexts(ArrowBasedBuilder):
    """Builder of `datasets` for the rows of local files."""

    BUILDER_CONFIG_CLASS = LocalTextsConfig
    VERSION = Version("1.1.0")  # increased when the same files would give other rows
    config: LocalTextsConfig

    def _info(self) -> DatasetInfo:
        source = self.config.source
        assert source is not None
        text = Value("string")
        message = dict.fromkeys(("role", "content", "tool_calls", "tool_call_id", "name"), text)
        if reasoning := stored_reasoning(source):
            message[reasoning] = text
        if flag := stored_flag(source):
            message[flag] = Value("bool")
        document: Any = [message] if source.holds_conversations else text
        columns = dict.fromkeys(source.columns, text) | dict.fromkeys(source.document_columns, document)
        return DatasetInfo(features=Features(columns))

    def _split_generators(self, dl_manager: Any) -> list[SplitGenerator]:
        return [SplitGenerator(name=str(Split.TRAIN), gen_kwargs={"files": self.config.files})]

    def _generate_tables(self, files: list[str]) -> Iterator[tuple[str, pa.Table]]:
        source = self.config.source
        assert source is not None
        schema = self.info.features.arrow_schema
        optional = CONTEXT_COLUMNS if source.holds_conversations else ()
        for file_number, file in enumerate(files):
            for number, chunk in enumerate(read_chunks(file, self.config.kind, source.columns, optional)):
                # In a parquet file the objects of a column have the same fields.
                keep_nulls = self.config.kind != "parquet"
                rows = (_checked(row, source, f"row {place:,} of {file!r}", keep_nulls) for place, row in chunk)
                yield f"{file_number}_{number}", _table(rows, schema)


def _table(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Converts rows slice by slice, so that few of them are Python objects at the same time."""
    slices = iter(lambda: list(islice(rows, SLICE_ROWS)), [])
    return pa.Table.from_batches((pa.RecordBatch.from_pylist(part, schema=schema) for part in slices), schema=schema)


def columns_of(source: TextSource, row: Mapping[str, Any]) -> list[Any]:
    """Returns the columns of a row that a source names.

    Raises:
        RowError: If the row lacks one.
    """
    try:
        return [row[column] for column in source.columns]
    except KeyError as error:
        (column,) = error.args
        named_by = next(name for name in reversed(_FIELDS) if getattr(source, name) == column)
        raise RowError(
            f"{named_by} must be a column of the data, got {column!r}; ", f" has {sorted(row)}; name one of them"
        ) from None


def _checked(row: Mapping[str, Any], source: TextSource, where: str, keep_nulls: bool) -> dict[str, Any]:
    """Returns the columns that are read of a row; every message says whether it is learned."""
    try:
        read = read_row(source, columns_of(source, row), keep_nulls=keep_nulls)
        if source.holds_conversations:
            check_context(source, row)
    except RowError as error:
        raise error.at(where) from None
    parts = (_value(part, source) for part in read.parts)
    stored = dict(zip(source.document_columns, parts, strict=True))
    if source.tools_field is not None:
        stored[source.tools_field] = as_json(read.tools, "tools") if read.tools else None
    if source.teacher_field is not None:
        stored[source.teacher_field] = read.teacher
    return stored


def _value(read: str | list[Turn], source: TextSource) -> Any:
    return read if isinstance(read, str) else [_message(turn, source) for turn in read]


def _message(turn: Turn, source: TextSource) -> dict[str, Any]:
    """A message as it is stored; JSON text keeps the tool calls as they are, without nulls for absent fields."""
    calls = [call.as_message() for call in turn.tool_calls]
    message: dict[str, Any] = {
        "role": turn.role,
        "content": turn.content,
        "tool_calls": as_json(calls, "tool_calls") if calls else None,
        "tool_call_id": turn.tool_call_id,
        "name": turn.name,
    }
    if reasoning := stored_reasoning(source):
        message[reasoning] = turn.reasoning or None
    if flag := stored_flag(source):
        message[flag] = turn.is_learned
    return message
