"""Converts texts to windows: tokenized, aligned, and cached by `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher
from lightning.pytorch.utilities import rank_zero_info

from xtoken_pl.data.collate import collate
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.maker import DOCUMENTS_PER_CALL, WindowMaker
from xtoken_pl.data.work_units import UnitWindows, work_units
from xtoken_pl.utilities.errors import UserError

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
    if isinstance(texts, IterableDataset):
        return IterableDataset.from_generator(_windows_of, gen_kwargs={"texts": texts, "maker": maker})
    num_processes = min(num_proc or 1, len(texts))
    units = work_units(texts, maker, num_processes)
    grouping = [] if maker.packing == "none" else [num_proc]
    fingerprint = Hasher.hash([texts._fingerprint, maker.fingerprint, *maker.columns, *grouping])
    windows = units.map(
        UnitWindows(texts, maker),
        batched=True,
        batch_size=1,
        remove_columns=units.column_names,
        features=Features({column: List(Value("int64")) for column in maker.window_columns}),
        num_proc=num_proc and num_processes,
        desc=f"tokenize and align {maker.source.path}",
        new_fingerprint=fingerprint,
        cache_file_name=texts._get_cache_file_path(fingerprint),
    )
    return windows.with_format("numpy")


def stored_stream(windows: IterableDataset, folder: str) -> Dataset:
    """Writes all windows of a stream to a directory, and opens them."""
    return Dataset.from_generator(_each, gen_kwargs={"windows": windows}, cache_dir=folder).with_format("numpy")


def check_windows(windows: Dataset | IterableDataset, split: str, maker: WindowMaker) -> None:
    """Refuses windows from which nothing can be learned.

    Args:
        windows: Windows of a split.
        split: Name of the split.
        maker: Maker of the windows.

    Raises:
        UserError: If there are no windows, or the first hundred have no span in common with a teacher.
    """
    windower, first = maker.windower, list(islice(windows, _NUM_CHECKED_WINDOWS))
    if not first:
        path = maker.source.path
        raise UserError(f"a data set must hold some text, every text of {path!r} is empty; give another file")
    if isinstance(windows, Dataset):
        rank_zero_info(f"{split}: {len(windows):,} windows of at most {windower.sequence_length} tokens")
    for name, view in collate(first, list(windower.teachers)).teachers.items():
        if len(view.spans) == 0:
            raise UserError(
                f"the first {len(first)} windows of {split} have no span in common with teacher {name!r}. "
                f"Raise sequence_length (now {windower.sequence_length}), or check that both tokenizers write this "
                "text unchanged"
            )


def _windows_of(texts: IterableDataset, maker: WindowMaker) -> Iterator[Window]:
    for rows in texts.iter(batch_size=DOCUMENTS_PER_CALL):
        for piece in maker.pieces(*(rows[column] for column in maker.columns)):
            yield from piece.windows


def _each(windows: IterableDataset) -> Iterator[Window]:
    yield from windows
