"""Loads texts and conversations from local files, directories, globs, or a data set of the `datasets` library."""

from __future__ import annotations

import glob
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError

from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import reason_of

# Suffix -> builder of `datasets` and its options. A .txt file is one text of any number of lines; line ends become \n.
_BUILDERS: dict[str, tuple[str, dict[str, str]]] = {
    ".txt": ("text", {"sample_by": "document"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
_COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")


@dataclass(kw_only=True)
class TextSource:
    """One split of texts or of conversations.

    Conversations are rendered with each side's own chat template, and only what the assistant says is learned.

    Attributes:
        path: A .txt, .jsonl, .json or .parquet file, a directory or glob of such files (all of one kind), or the id
            of a data set or builder that `datasets` loads without a script.
        name: Configuration of the data set.
        data_files: Files for a builder or data set that takes them.
        split: Split of the data set, or a slice such as ``train[:1%]``; local files have only ``train``.
        text_field: Column that holds the text.
        revision: Branch, tag or commit of the data set.
        messages_field: Column that holds conversations instead of texts, as lists of messages ``{role, content}``.
        prompt_field, completion_field: Columns that hold a user's prompt and the assistant's answer instead of texts,
            as strings or lists of messages; only the completion is learned.
        learn_turn_end: Also learn the special token that ends the assistant's turn, so that the student learns to
            stop.

    Raises:
        UserError: If fields of several kinds are set, or only one of a pair.
    """

    path: str
    name: str | None = None
    data_files: str | list[str] | None = None
    split: str = "train"
    text_field: str = "text"
    revision: str | None = None
    messages_field: str | None = None
    prompt_field: str | None = None
    completion_field: str | None = None
    learn_turn_end: bool = False

    def __post_init__(self) -> None:
        if (self.prompt_field is None) != (self.completion_field is None):
            given, missing = ("prompt", "completion") if self.completion_field is None else ("completion", "prompt")
            raise UserError(
                f"prompt_field and completion_field belong together, got only {given}_field="
                f"{getattr(self, given + '_field')!r}; set {missing}_field, too, or leave {given}_field out"
            )
        if self.messages_field is not None and self.prompt_field is not None:
            raise UserError(
                f"a source holds either messages or prompts and completions, got messages_field="
                f"{self.messages_field!r} and prompt_field={self.prompt_field!r}; leave messages_field out, or "
                "prompt_field and completion_field"
            )
        if self.holds_conversations and self.text_field != "text":
            raise UserError(
                f"a source holds either texts or conversations, got text_field={self.text_field!r} and "
                f"{', '.join(self.columns)}; leave text_field out, or the fields of conversations"
            )
        if self.learn_turn_end and not self.holds_conversations:
            raise UserError(
                "learn_turn_end needs conversations, got texts; leave it out, or set messages_field, or prompt_field "
                "and completion_field"
            )

    def __repr__(self) -> str:
        # Checkpoints of streams hold this text: fields that were added later appear only where they are set.
        first = ("path", "name", "data_files", "split", "text_field", "revision")
        shown = [f for f in fields(self) if f.name in first or getattr(self, f.name) != f.default]
        return f"TextSource({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    @property
    def holds_conversations(self) -> bool:
        """Whether the source holds conversations rather than plain texts."""
        return self.messages_field is not None or self.prompt_field is not None

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are read."""
        if self.messages_field is not None:
            return [self.messages_field]
        if self.prompt_field is not None and self.completion_field is not None:
            return [self.prompt_field, self.completion_field]
        return [self.text_field]


def load_source(source: TextSource, *, streaming: bool = False) -> Dataset | IterableDataset:
    """Loads a source and checks that it is not empty.

    Raises:
        UserError: If a local path does not exist.
        UserError: If the data set cannot be loaded, is empty, or lacks a named column.
    """
    files = _local_files(source.path)
    options: dict[str, Any] = {"split": source.split, "streaming": streaming}
    if files is not None:
        for option in ("name", "data_files", "revision"):
            if getattr(source, option) is not None:
                raise UserError(
                    f"{option} belongs to a data set, but {source.path!r} is a local path; leave it out, or give an id"
                )
        builder, builder_options = _builder_of(files, source.path)
        options |= {"path": builder, "data_files": files, **builder_options}
    else:
        options |= {"path": source.path, "name": source.name, "revision": source.revision}
        options["data_files"] = source.data_files
    try:
        dataset = load_dataset(**options)
        first = next(iter(dataset), None)
    except (OSError, ValueError, RuntimeError, DatasetsError, StopIteration) as error:  # StopIteration: an empty file
        raise UserError(_unreadable(source, error, is_local=files is not None)) from error
    _check(first, source)
    return dataset


def _unreadable(source: TextSource, error: Exception, *, is_local: bool) -> str:
    """Error message for a source that cannot be loaded, after the underlying reason."""
    reason = error.__cause__ or error
    if is_local and (isinstance(reason, StopIteration) or "corresponds to no data" in str(reason)):
        return f"a data set must hold at least one text, but {source.path!r} is empty; give another file"
    if is_local and isinstance(reason, UnicodeDecodeError):
        return (
            f"texts must be UTF-8, but {source.path!r} is not ({reason.reason} at byte {reason.start}); convert it "
            "(with iconv, say), or give another file"
        )
    said = f"{type(reason).__name__}: {reason_of(reason)}"
    if is_local:
        return (
            f"{source.path!r} could not be read (split {source.split!r}). Check that it is complete and holds texts, "
            f"and that the split is train. Reason: {said}"
        )
    return (
        f"{source.path!r} is not a local file or directory, and could not be loaded as a data set (name "
        f"{source.name!r}, split {source.split!r}). Check the path (relative paths start at the working directory), "
        f"or the id and the split. Reason: {said}"
    )


def _local_files(path: str) -> list[str] | None:
    """Files that a local path refers to; None if it is the id of a data set."""
    local = Path(path)
    if local.is_file():
        return [path]
    if local.is_dir():
        files = sorted(str(file) for file in local.rglob("*") if _ending(file) in _BUILDERS)
        problem = f"a directory of texts must hold {_endings()} files, but {path!r} has none"
    elif glob.has_magic(path):
        files, problem = sorted(glob.glob(path, recursive=True)), f"no file matches {path!r}"
    elif _ending(local) in _BUILDERS or local.is_absolute() or path.startswith("."):
        files, problem = [], f"there is no file or directory {path!r}"
    else:
        return None
    if not files:
        raise UserError(f"{problem}; check the path (relative paths start at the working directory)")
    return files


def _builder_of(files: list[str], path: str) -> tuple[str, dict[str, str]]:
    endings = {_ending(Path(file)) for file in files}
    builders = {_BUILDERS[ending][0] for ending in endings if ending in _BUILDERS}
    if len(builders) != 1 or not endings <= _BUILDERS.keys():
        raise UserError(
            f"the files of a source must be of one kind, {_endings()}; {path!r} has {sorted(endings)}. "
            "Select one kind with a glob such as 'directory/*.jsonl'"
        )
    return _BUILDERS[endings.pop()]


def _ending(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _COMPRESSIONS else path.suffix


def _endings() -> str:
    return ", ".join(_BUILDERS)


def _check(first: dict[str, Any] | None, source: TextSource) -> None:
    """Checks that there is a first row, and that it has the columns that are read."""
    if first is None:
        raise UserError(
            f"a data set must hold at least one text, but {source.path!r} (split {source.split!r}) is empty; give "
            "another"
        )
    for field in fields(source):
        column = getattr(source, field.name)
        if field.name.endswith("_field") and column in source.columns and column not in first:
            raise UserError(
                f"{field.name} must be a column of the data, got {column!r}; {source.path!r} has {sorted(first)}; "
                "name one of them"
            )
    if not source.holds_conversations and not isinstance(first[source.text_field], str):
        raise UserError(
            f"text_field must hold strings, but {source.text_field!r} of {source.path!r} holds "
            f"{type(first[source.text_field]).__name__}; name another column, or give texts"
        )
