"""Loads texts and conversations from local files, directories, globs, or a data set of the `datasets` library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import pyarrow as pa
from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError

from xtoken_pl.data.chats.conversations import LearnedParts
from xtoken_pl.data.sources.checked_rows import with_checked_columns
from xtoken_pl.data.sources.local_files import find_data_files, find_files, is_saved_data_set, load_saved
from xtoken_pl.data.sources.local_texts import load_local
from xtoken_pl.utilities.checks import check_not_negative
from xtoken_pl.utilities.errors import UserError, root_cause
from xtoken_pl.utilities.words import reason_of


@dataclass(kw_only=True)
class TextSource:
    """One split of texts or of conversations.

    Conversations are rendered with each side's own chat template. What the assistant says is learned, unless a message
    says otherwise (``weight``, ``loss``, ``train``).

    Attributes:
        path: A .txt, .jsonl, .json, .csv or .parquet file, a directory or glob of such files (all of one kind), a
            directory written by ``save_to_disk``, or the id of a data set or builder that `datasets` loads without a
            script.
        name: Configuration of the data set.
        data_files: Files for a builder or data set that takes them.
        split: Split of the data set, or a slice such as ``train[:1%]``; local files have only ``train``.
        text_field: Column that holds the text.
        revision: Branch, tag or commit of the data set.
        messages_field: Column that holds conversations instead of texts, as lists of messages ``{role, content}``.
        prompt_field, completion_field: Columns that hold a user's prompt and the assistant's answer instead of texts,
            as strings or lists of messages; only the completion is learned. ``prompt_field`` alone holds prompts that
            the student answers itself (``model.rollouts`` with ``share: 1``, without a warm-up).
        learn_turn_end: Also learn the special token that ends the assistant's turn, so that the student learns to
            stop.
        learn_reasoning: Learn the reasoning of the assistant (``reasoning_content`` or ``thinking`` of a message).
        learn_tool_calls: Learn the tool calls of the assistant (``tool_calls`` of a message).
        tools_field: Column that holds the tools of a conversation, as chat templates take them: a list of JSON schemas,
            or its JSON text.
        ignored_fields: Fields of messages, and columns beside conversations, that are left out. Others that a chat
            template might read, such as ``documents`` or ``name``, are refused.
        weight: Share of the source in a mixture, relative to the weights of the other sources of ``data.train``; None,
            for all of them, reads every window once per epoch.
        teachers: Names of the teachers that teach on this source; None for all.
        alphas: Static weights of teachers on this source, by name; 0 for a teacher that does not teach on it, and a
            teacher without an entry keeps the alpha of its specification.
        teacher_field: Column that holds the name of the teacher that teaches on a row; a row without a name is learned
            by cross-entropy alone.

    Raises:
        UserError: If fields of several kinds are set, only one of a pair, or a weight that is negative or not finite.
    """

    #: Whether the rows must hold an answer of the assistant to learn from.
    needs_answers: ClassVar[bool] = True

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
    ignored_fields: list[str] | None = None
    learn_reasoning: bool = True
    learn_tool_calls: bool = True
    tools_field: str | None = None
    weight: float | None = None
    teachers: list[str] | None = None
    alphas: dict[str, float] | None = None
    teacher_field: str | None = None

    def __post_init__(self) -> None:
        try:
            self._check_columns()
            self._check_mixture()
        except UserError as error:
            raise UserError(f"source {self.path!r}: {error}") from None

    def _check_columns(self) -> None:
        if self.prompt_field is None and self.completion_field is not None:
            raise UserError(
                "prompt_field and completion_field belong together, got only completion_field="
                f"{self.completion_field!r}; set prompt_field, too, or leave completion_field out"
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
                f"{', '.join(self.document_columns)}; leave text_field out, or the fields of conversations"
            )
        for option in ("learn_turn_end", "learn_reasoning", "learn_tool_calls", "ignored_fields", "tools_field"):
            is_given = getattr(self, option) not in (getattr(TextSource, option), [])
            if is_given and not self.holds_conversations:
                raise UserError(
                    f"{option} needs conversations, got texts; leave it out, or set messages_field, or prompt_field "
                    "and completion_field"
                )
        if needed := {"role", "content"} & set(self.ignored):
            raise UserError(f"role and content cannot be ignored_fields, got {', '.join(sorted(needed))}; leave it out")
        if len(set(self.columns)) < len(self.columns):
            raise UserError(f"columns must be different, got {', '.join(self.columns)}; name each in one field only")

    def _check_mixture(self) -> None:
        if self.weight is not None:
            check_not_negative("weight", self.weight, "0 leaves the source out")
        if self.teachers is not None and self.alphas is not None:
            raise UserError(
                f"a source names its teachers by teachers or by alphas, got teachers={self.teachers} and alphas="
                f"{self.alphas}; leave one out"
            )
        for name, alpha in (self.alphas or {}).items():
            check_not_negative(f"alphas.{name}", alpha, "0 for a teacher that does not teach on the source")

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
    def ignored(self) -> list[str]:
        """Names of the fields that are left out."""
        return self.ignored_fields or []

    @property
    def learned(self) -> LearnedParts:
        """Parts of an assistant's turn that are learned."""
        return LearnedParts(self.learn_turn_end, self.learn_reasoning, self.learn_tool_calls)

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are read: those of the document, of its tools and of its teacher."""
        beside = [name for name in (self.tools_field, self.teacher_field) if name is not None]
        return [*self.document_columns, *beside]

    @property
    def document_columns(self) -> list[str]:
        """Names of the columns that hold a text or the messages of a conversation."""
        if self.messages_field is not None:
            return [self.messages_field]
        if self.prompt_field is not None:
            return [self.prompt_field, *([] if self.completion_field is None else [self.completion_field])]
        return [self.text_field]


class PromptSource(TextSource):
    """A source that is read for its prompts alone: conversations need no answer."""

    needs_answers = False

    @classmethod
    def from_source(cls, source: TextSource) -> PromptSource:
        """Returns the same source, read for its prompts alone."""
        return cls(**{field.name: getattr(source, field.name) for field in fields(source)})


def load_source(source: TextSource, *, streaming: bool = False) -> Dataset | IterableDataset:
    """Loads a source and checks that it is not empty.

    Raises:
        UserError: If a local path does not exist.
        UserError: If the data set cannot be loaded, is empty, or lacks a named column.
        UserError: If a row of a local file holds no text or conversation; when streaming, the first rows are read here.
    """
    found = find_files(source.path)
    is_saved = found is None and is_saved_data_set(source.path)
    idle: tuple[str, ...] = ("name", "data_files", "revision")
    what = "is a local path"
    if found is None and not is_saved:
        found = find_data_files(source.path, source.data_files)
        idle, what = ("name", "revision"), "with data_files reads local files"
    for option in idle if found is not None or is_saved else ():
        if getattr(source, option) is not None:
            raise UserError(f"{option} belongs to a data set, but {source.path!r} {what}; leave it out, or give an id")
    with readable(source):
        dataset: Dataset | IterableDataset
        if found is not None:
            dataset = load_local(*found, source, streaming=streaming)
        elif is_saved:
            dataset = load_saved(source.path, source.split, streaming=streaming)
        else:
            dataset = load_dataset(
                source.path,
                name=source.name,
                data_files=source.data_files,
                revision=source.revision,
                split=source.split,
                streaming=streaming,
            )
        first = next(iter(dataset), None)
    if first is None:
        raise _empty(source)
    return dataset if found is not None else with_checked_columns(dataset, first, source)


@contextmanager
def readable(source: TextSource) -> Iterator[None]:
    """Raises errors while a source is read as a :class:`UserError` that names the source."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError, pa.ArrowException, DatasetsError, StopIteration) as error:
        reason = root_cause(error)
        if isinstance(reason, UserError):
            raise reason from None
        if "corresponds to no data" in str(reason):
            raise _empty(source) from None
        raise UserError(
            f"{source.path!r} could not be read (split {source.split!r}). Check the path (relative paths start at the "
            "working directory), or the id, and the split (that of local files is train). Reason: "
            f"{type(reason).__name__}: {reason_of(reason)}"
        ) from error


def readable_batches(batches: Iterable[Any], source: TextSource) -> Iterator[Any]:
    """Yields the batches of a stream; an error while one is read names the source."""
    iterator = iter(batches)
    while True:
        with readable(source):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


def _empty(source: TextSource) -> UserError:
    return UserError(
        f"a data set must hold at least one text, but {source.path!r} is empty (split {source.split!r}); give another"
    )
