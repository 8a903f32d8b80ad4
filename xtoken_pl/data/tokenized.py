"""From texts to windows: tokenized, aligned, and cached by `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from datasets.fingerprint import Hasher
from lightning.pytorch.utilities import rank_zero_info

from xtoken_pl.data.collate import collate
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.windows import Window
from xtoken_pl.utilities.errors import UserError

#: Documents that are tokenized, and packed, at a time.
DOCUMENTS_PER_CALL = 100
_NUM_CHECKED_WINDOWS = 100


def stored_windows(texts: Dataset, maker: WindowMaker, num_proc: int | None) -> Dataset:
    """The windows of texts, read from the cache of `datasets` if they were made before.

    Args:
        texts: Texts or conversations.
        maker: Makes windows of them.
        num_proc: Processes that tokenize and align; with packing they decide which documents are put together.
    """
    grouping = [] if maker.packing == "none" else [num_proc]
    windows = texts.map(
        **_options(texts, maker),
        num_proc=num_proc,
        desc=f"tokenize and align {maker.source.path}",
        new_fingerprint=Hasher.hash([texts._fingerprint, maker.fingerprint, *maker.columns, *grouping]),
    )
    return windows.with_format("numpy")


def streamed_windows(texts: IterableDataset, maker: WindowMaker) -> IterableDataset:
    """The windows of a stream of texts, made as they are read."""
    return texts.map(**_options(texts, maker))


def stored_stream(windows: IterableDataset, folder: str) -> Dataset:
    """All windows of a stream, written to a folder."""
    return Dataset.from_generator(_each, gen_kwargs={"windows": windows}, cache_dir=folder).with_format("numpy")


def check_windows(windows: Dataset | IterableDataset, split: str, maker: WindowMaker) -> None:
    """Refuses windows from which nothing can be learned.

    Args:
        windows: Windows of a split.
        split: Name of the split.
        maker: Maker of the windows.

    Raises:
        UserError: If there is none, or the first hundred have no span in common with a teacher.
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


def _options(texts: Dataset | IterableDataset, maker: WindowMaker) -> dict[str, Any]:
    return {
        "function": maker,
        "batched": True,
        "batch_size": DOCUMENTS_PER_CALL,
        "input_columns": maker.columns,
        "remove_columns": texts.column_names or list(next(iter(texts))),
    }


def _each(windows: IterableDataset) -> Iterator[Window]:
    yield from windows
