"""Finds the files that a local path refers to, and opens directories that `datasets` has written."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict, IterableDataset, ReadInstruction, concatenate_datasets, load_from_disk

from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import first_of

logger = logging.getLogger(__name__)

#: Suffix -> kind. A .txt file is one text of any number of lines; line ends become \n.
_KINDS = {
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
#: Builders of `datasets` whose files are read here. `text` is not one of them: it gives a row per line.
_BUILDERS = ("json", "csv", "parquet")
_COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")


def find_files(path: str) -> tuple[list[str], str] | None:
    """Finds the files of a local path, sorted by name, and their kind; None if it is the id of a data set.

    Names that begin with a dot belong to editors, notebooks and file systems: in directories they are left out.

    Raises:
        UserError: If there is no such file, or the files are of several kinds.
    """
    local = Path(path)
    if local.is_file():
        return [path], _kind_of([path], path)
    if local.is_dir():
        if is_saved_data_set(path):
            return None
        files = _in_directory(local)
        problem = f"a directory of texts must hold {_endings()} files, but {path!r} has none"
    elif glob.has_magic(path):
        files = sorted(name for name in glob.glob(path, recursive=True) if not Path(name).is_dir())
        problem = f"no file matches {path!r}"
    elif _ending(local) in _KINDS or local.is_absolute() or path.startswith("."):
        files, problem = [], f"there is no file or directory {path!r}"
    else:
        return None
    if not files:
        raise UserError(f"{problem}; check the path (relative paths start at the working directory)")
    return _without_doubles(files), _kind_of(files, path)


def find_data_files(builder: str, data_files: str | Sequence[str] | None) -> tuple[list[str], str] | None:
    """Finds the local files that are given to the builder `json`, `csv` or `parquet`; None for all others."""
    patterns = [data_files] if isinstance(data_files, str) else list(data_files or ())
    if builder not in _BUILDERS or not patterns or any("://" in pattern for pattern in patterns):
        return None
    files = []
    for pattern in patterns:
        found = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        if not (found := [name for name in found if not Path(name).is_dir()]):
            raise UserError(
                f"no file matches {pattern!r} of data_files; check the path (relative paths start at the working "
                "directory)"
            )
        files += found
    return _without_doubles(files), builder


def file_stamps(files: Iterable[str]) -> list[tuple[str, int, int]]:
    """Path, size and time of each file, by which a changed file is recognized."""
    stats = ((Path(file).absolute(), Path(file).stat()) for file in files)
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def is_saved_data_set(path: str) -> bool:
    """Whether a directory was written by ``save_to_disk`` of a Dataset or a DatasetDict."""
    return Path(path, "dataset_dict.json").is_file() or all(
        Path(path, name).is_file() for name in ("state.json", "dataset_info.json")
    )


def load_saved(path: str, split: str, *, streaming: bool) -> Dataset | IterableDataset:
    """Opens a split, or a slice of one, of a directory that ``save_to_disk`` has written.

    A Dataset has the one split that it was loaded as; ``train``, the default, always selects it.
    """
    saved = load_from_disk(path)
    splits = saved if isinstance(saved, DatasetDict) else {str(saved.split or "train"): saved}
    if isinstance(saved, Dataset) and split.partition("[")[0] == "train":
        splits = {"train": saved}
    parts = ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in splits.items()})
    chosen = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    dataset = concatenate_datasets(chosen)
    return (
        dataset.to_iterable_dataset(num_shards=max(1, min(len(dataset), len(dataset.cache_files))))
        if streaming
        else dataset
    )


def _in_directory(folder: Path) -> list[str]:
    """Files of a directory, and of those below it, that hold texts; a warning names the others."""
    names = sorted(glob.glob("**", root_dir=folder, recursive=True))  # without names that begin with a dot
    found = [name for name in names if not (folder / name).is_dir()]
    files = [str(folder / name) for name in found if _ending(Path(name)) in _KINDS]
    others = [name for name in found if _ending(Path(name)) not in _KINDS]
    if files and others:
        logger.warning(
            "%d files of %r are not read, since they are not texts: %s", len(others), str(folder), first_of(others)
        )
    return sorted(files)


def _without_doubles(files: list[str]) -> list[str]:
    """Leaves out names that lead to a file that is read already."""
    first: dict[str, str] = {}
    doubles = [name for name in files if first.setdefault(os.path.realpath(name), name) != name]
    if doubles:
        logger.warning(
            "%d names lead to files that are read already and are left out: %s", len(doubles), first_of(doubles)
        )
    return list(first.values())


def _kind_of(files: Iterable[str], path: str) -> str:
    endings = {_ending(Path(file)) for file in files}
    kinds = {_KINDS.get(ending) for ending in endings}
    (kind, *others) = kinds
    if kind is None or others:
        raise UserError(
            f"the files of a source must be of one kind, {_endings()}; {path!r} has {sorted(endings)}. "
            "Select one kind with a glob such as 'directory/*.jsonl'"
        )
    return kind


def _ending(path: Path) -> str:
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _COMPRESSIONS else suffix


def _endings() -> str:
    return ", ".join(_KINDS)
