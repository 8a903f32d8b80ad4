"""Checks rows of data sets of the `datasets` library, and finds the first one that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset, IterableDataset, Value
from datasets.fingerprint import Hasher

from xtoken_pl.data.chats.conversations import CONTEXT_COLUMNS, check_context, read_row
from xtoken_pl.data.sources.local_texts import columns_of
from xtoken_pl.data.sources.row_errors import RowError

if TYPE_CHECKING:
    from xtoken_pl.data.sources.text_source import TextSource


def locate(
    error: RowError, texts: Dataset, source: TextSource, check: Callable[[Sequence[Any]], object] = list
) -> RowError:
    """Finds the first row of a stored data set that cannot be used, and names it in the error.

    Args:
        error: Error without the place of the row.
        texts: The data set.
        source: Its source.
        check: Further check of the columns of a row; raises a RowError.
    """
    for number, row in enumerate(texts.select_columns(source.columns), start=1):
        try:
            read_row(source, columns_of(source, row))
            check(columns_of(source, row))
        except RowError as found:
            return found.at(f"row {number:,} of {source.path!r} (split {source.split!r})")
    return error


def with_checked_columns(
    dataset: Dataset | IterableDataset, first: Mapping[str, Any], source: TextSource
) -> Dataset | IterableDataset:
    """Checks the first row of a data set, and what stands beside its conversations."""
    try:
        read_row(source, columns_of(source, first))
    except RowError as error:
        raise error.at(f"row 1 of {source.path!r}") from None
    if not source.holds_conversations:
        return dataset
    beside = [name for name in first if name in CONTEXT_COLUMNS and name not in (*source.columns, *source.ignored)]
    if isinstance(dataset, Dataset) and any(
        _has_more_fields(dataset.features[column]) for column in source.document_columns
    ):
        # Earlier versions did not read these fields, and the fields that are left out change the windows: do not take
        # those of other settings from the cache of `datasets`.
        dataset._fingerprint = Hasher.hash([dataset._fingerprint, "fields of messages", *sorted(source.ignored)])
    if isinstance(dataset, IterableDataset):
        return dataset.map(_without_context, fn_kwargs={"source": source}, remove_columns=beside) if beside else dataset
    batches = dataset.select_columns(beside).iter(batch_size=1000) if beside else ()
    rows = (dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True))
    for number, row in enumerate(rows, start=1):
        _without_context(row, source, f"row {number:,} of {source.path!r}")
    return dataset


def _without_context(row: Mapping[str, Any], source: TextSource, where: str = "") -> dict[str, Any]:
    try:
        check_context(source, row)
    except RowError as error:
        raise error.at(where or f"a row of {source.path!r}") from None
    return {}


def _has_more_fields(feature: Any) -> bool:
    """Whether messages may have other fields than role and content."""
    message = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    names = set(message) if isinstance(message, Mapping) else set()
    return not isinstance(message, Value) and names != {"role", "content"}
