"""Converts texts to windows: tokenized, aligned, and cached by `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from datasets.exceptions import DatasetsError
from datasets.fingerprint import Hasher
from lightning.pytorch.utilities import rank_zero_info

from xtoken_pl.data.collate import collate
from xtoken_pl.data.conversations import RowError
from xtoken_pl.data.coverage import likely_cause, warn_of_low_coverage
from xtoken_pl.data.maker import DOCUMENTS_PER_CALL, WindowMaker
from xtoken_pl.data.sources import locate
from xtoken_pl.data.windows import Window
from xtoken_pl.utilities.errors import UserError, root_cause

_NUM_CHECKED_WINDOWS = 100


def make_windows(
    texts: Dataset | IterableDataset, maker: WindowMaker, num_proc: int | None
) -> Dataset | IterableDataset:
    """Converts texts to windows: a stream's as they are read, others at once, with the cache of `datasets`.

    Args:
        texts: Texts or conversations.
        maker: Maker of the windows.
        num_proc: Number of processes that tokenize and align; with packing, it affects which documents share a window.
    """
    options: dict[str, Any] = {
        "function": maker,
        "batched": True,
        "batch_size": DOCUMENTS_PER_CALL,
        "input_columns": maker.columns,
        "remove_columns": texts.column_names or list(next(iter(texts))),
    }
    if isinstance(texts, IterableDataset):
        return texts.map(**options)
    grouping = [] if maker.packing == "none" else [num_proc]
    try:
        windows = texts.map(
            **options,
            num_proc=num_proc,
            desc=f"tokenize and align {maker.source.path}",
            new_fingerprint=Hasher.hash([texts._fingerprint, maker.fingerprint, *maker.columns, *grouping]),
        )
    except RowError as error:
        raise locate(error, texts, maker.source) from None
    return windows.with_format("numpy")


def stored_stream(windows: IterableDataset, folder: str) -> Dataset:
    """Writes all windows of a stream to a directory, and opens them."""
    try:
        stored = Dataset.from_generator(_each, gen_kwargs={"windows": windows}, cache_dir=folder)
    except DatasetsError as error:
        reason = root_cause(error)
        raise (reason if isinstance(reason, UserError) else error) from None
    return stored.with_format("numpy")


def check_windows(windows: Dataset | IterableDataset, split: str, maker: WindowMaker) -> None:
    """Refuses windows from which nothing can be learned, and warns if much of them is in no span.

    Args:
        windows: Windows of a split.
        split: Name of the split.
        maker: Maker of the windows.

    Raises:
        UserError: If there are no windows, or a hundred of them have no span in common with a teacher.
    """
    windower, checked = maker.windower, _some_of(windows)
    if not checked:
        path = maker.source.path
        raise UserError(f"a data set must hold some text, every text of {path!r} is empty; give another file")
    if isinstance(windows, Dataset):
        rank_zero_info(f"{split}: {len(windows):,} windows of at most {windower.sequence_length} tokens")
    if maker.normalizer is not None:
        rank_zero_info(f"{split}: every side reads the texts as rewritten by {maker.normalizer.description}")
    batch = collate(checked, list(windower.teachers))
    for name, view in batch.teachers.items():
        if len(view.spans) == 0:
            raise UserError(
                f"the {len(checked)} checked windows of {split} have no span in common with teacher {name!r}. "
                f"Raise sequence_length (now {windower.sequence_length}), or give other texts. "
                f"{likely_cause(checked, name, maker)}"
            )
    warn_of_low_coverage(batch, checked, split, maker)


def _some_of(windows: Dataset | IterableDataset) -> list[Window]:
    """Stored windows from all of the data, or the first windows of a stream."""
    if isinstance(windows, IterableDataset):
        return list(islice(windows, _NUM_CHECKED_WINDOWS))
    num_checked = min(len(windows), _NUM_CHECKED_WINDOWS)
    return [windows[index * len(windows) // num_checked] for index in range(num_checked)]


def _each(windows: IterableDataset) -> Iterator[Window]:
    yield from windows
