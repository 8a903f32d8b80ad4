"""Converts texts to windows: tokenized, aligned, and cached by `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import pyarrow.compute as pc
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.exceptions import DatasetsError
from datasets.fingerprint import Hasher
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from xtoken_pl.batch import prompt_column, teacher_columns
from xtoken_pl.data.chats.conversations import RowError
from xtoken_pl.data.collate import collate
from xtoken_pl.data.coverage import check_coverage, likely_cause
from xtoken_pl.data.cutting import Window
from xtoken_pl.data.left_out import LeftOut, LeftOutFile
from xtoken_pl.data.maker import DOCUMENTS_PER_CALL, WindowMaker
from xtoken_pl.data.prompt_counts import count_prompts
from xtoken_pl.data.sources.checked_rows import locate
from xtoken_pl.data.sources.text_source import readable_batches
from xtoken_pl.data.work_units import UnitWindows, num_shards, work_units
from xtoken_pl.utilities.errors import UserError, root_cause

_NUM_CHECKED_WINDOWS = 100
_ROWS_PER_READ = 10_000


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
    grouping = [] if maker.packing == "none" else [num_proc]
    fingerprint = Hasher.hash([texts._fingerprint, maker.fingerprint, *maker.columns, *grouping])
    cache_file = texts._get_cache_file_path(fingerprint)
    units = work_units(texts, maker, num_shards(cache_file, num_processes))
    left_out = LeftOutFile(f"{cache_file}.left_out.jsonl")
    try:
        windows = units.map(
            UnitWindows(texts, maker, left_out),
            batched=True,
            batch_size=1,
            remove_columns=units.column_names,
            features=_features(maker),
            num_proc=num_proc and num_processes,
            desc=f"tokenize and align {maker.source.path}",
            new_fingerprint=fingerprint,
            cache_file_name=cache_file,
        )
    except RowError as error:
        raise locate(error, texts, maker.source, maker.teacher_of) from None
    lost = left_out.total(tuple(unit.values()) for unit in units)
    if lost.count:
        _say_left_out(lost, maker, is_all=not len(windows), among=f" of {len(texts):,}")
    return windows.with_format("numpy")


def _say_left_out(lost: LeftOut, maker: WindowMaker, *, is_all: bool, among: str = "") -> None:
    """Warns of conversations, or windows, that are left out, and refuses a source of which none is left."""
    path, (one, several) = maker.source.path, maker.left_out_are
    if is_all:
        raise UserError(f"every {one} of {path!r} is left out. The first: {lost.reason}")
    among = among if maker.source.holds_conversations else ""  # a text has many windows
    rank_zero_warn(f"{lost.count:,}{among} {several} of {path!r} are left out. The first: {lost.reason}")


def _features(maker: WindowMaker) -> Features:
    return Features({column: List(Value("int64")) for column in maker.window_columns})


def stored_stream(windows: IterableDataset, maker: WindowMaker, folder: str) -> Dataset:
    """Writes all windows of a stream to a directory, and opens them."""
    try:
        stored = Dataset.from_generator(
            _each, gen_kwargs={"windows": windows}, features=_features(maker), cache_dir=folder
        )
    except DatasetsError as error:
        reason = root_cause(error)
        raise (reason if isinstance(reason, UserError) else error) from None
    return stored.with_format("numpy")


def window_at(windows: Sequence[Window] | IterableDataset, where: str, index: int) -> Window:
    """Returns one window of a split or of a source, counted from 0.

    Raises:
        UserError: If there is no such window.
    """
    if not isinstance(windows, IterableDataset):
        how_many = f"{len(windows):,}"
        if 0 <= index < len(windows):
            return windows[index]
    else:
        how_many = "a stream of"
        if index >= 0 and (found := list(windows.skip(index).take(1))):
            return found[0]
    raise UserError(
        f"window must be one of {how_many} windows of {where}, counted from 0, got {index}; choose one of them"
    )


def check_windows(windows: Dataset | IterableDataset, where: str, maker: WindowMaker) -> None:
    """Refuses windows from which nothing can be learned, and warns if much of them is in no span.

    Windows that hold nothing but prompts have no spans yet; of prompts the log gives numbers. If rows name their
    teachers, each teacher is checked on its own windows, and not at all if none of them is found.

    Args:
        windows: Windows of a source.
        where: Name of the split, or of the source, for messages.
        maker: Maker of the windows.

    Raises:
        UserError: If there are no windows, a hundred of them have no span in common with a teacher, or prompts are
            wanted and there are none.
    """
    windower, found = maker.windower, _some_of(windows)
    if not found:
        path = maker.source.path
        raise UserError(f"a data set must hold some text, every text of {path!r} is empty; give another file")
    if isinstance(windows, Dataset):
        rank_zero_info(f"{where}: {len(windows):,} windows of at most {windower.sequence_length} tokens")
    if maker.normalizer is not None:
        rank_zero_info(f"{where}: every side reads the texts as rewritten by {maker.normalizer.description}")
    if maker.source.teacher_field is not None and windower.teachers and isinstance(windows, Dataset):
        rank_zero_info(f"{where}: {_by_teacher_in_words(windows, maker)}")
    if maker.prompts is not None:
        count_prompts(windows if isinstance(windows, Dataset) else found, where, maker)
    if maker.takes_prompts_alone:
        return
    for name in windower.teachers:
        checked = found
        if maker.source.teacher_field is not None:
            checked = [window for window in found if len(window[teacher_columns(name)[0]])]
        if checked:
            _check_teacher(name, checked, where, maker)


def _check_teacher(name: str, checked: Sequence[Window], where: str, maker: WindowMaker) -> None:
    view = collate(checked, [name]).teachers[name]
    if len(view.spans) == 0:
        raise UserError(
            f"the {len(checked)} checked windows of {where} have no span in common with teacher {name!r}. "
            f"Raise sequence_length (now {maker.windower.sequence_length}), or give other texts. "
            f"{likely_cause(checked, name, maker)}"
        )
    check_coverage(view, name, checked, where, maker)


def _by_teacher_in_words(windows: Dataset, maker: WindowMaker) -> str:
    """Counts the windows of each teacher, where each window has one or none."""
    columns = {
        name: prompt_column(name) if maker.takes_prompts_alone else teacher_columns(name)[0]
        for name in maker.windower.teachers
    }
    counts = dict.fromkeys(columns, 0)
    for part in windows.with_format("arrow").select_columns([*columns.values()]).iter(batch_size=_ROWS_PER_READ):
        for name, column in columns.items():
            counts[name] += pc.sum(pc.greater(pc.list_value_length(part.column(column)), 0)).as_py()
    rest = len(windows) - sum(counts.values())
    taught = ", ".join(f"{count:,} by teacher {name!r}" for name, count in counts.items())
    of_rest = (
        "" if maker.takes_prompts_alone else f"; {rest:,} windows without a teacher are learned by cross-entropy alone"
    )
    return f"taught are {taught}{of_rest}"


def _some_of(windows: Dataset | IterableDataset) -> list[Window]:
    """Stored windows from all of the data, or the first windows of a stream."""
    if isinstance(windows, IterableDataset):
        return list(islice(windows, _NUM_CHECKED_WINDOWS))
    num_checked = min(len(windows), _NUM_CHECKED_WINDOWS)
    return [windows[index * len(windows) // num_checked] for index in range(num_checked)]


def _windows_of(texts: IterableDataset, maker: WindowMaker) -> Iterator[Window]:
    lost, is_empty = LeftOut(), True
    for rows in readable_batches(texts.iter(batch_size=DOCUMENTS_PER_CALL), maker.source):
        for piece in maker.pieces(*(rows[column] for column in maker.columns)):
            lost.add(piece.left_out)
            is_empty = is_empty and not piece.windows
            yield from piece.windows
    if lost.count:
        _say_left_out(lost, maker, is_all=is_empty)


def _each(windows: IterableDataset) -> Iterator[Window]:
    yield from windows
