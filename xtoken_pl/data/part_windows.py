"""The windows of the parts of a run: made, checked, and opened for a loader."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from tempfile import TemporaryDirectory
from typing import Any, cast

from datasets import Dataset, IterableDataset

from xtoken_pl.data.cutting import Window
from xtoken_pl.data.maker import WindowMaker
from xtoken_pl.data.mixture import Part
from xtoken_pl.data.order.mixed_order import MixedOrder
from xtoken_pl.data.order.mixed_stream import MixedStream, NamedStream
from xtoken_pl.data.order.streams import BlockStream
from xtoken_pl.data.packing import Packing
from xtoken_pl.data.sources.text_source import load_source
from xtoken_pl.data.stored_windows import JoinedWindows, SpanStore, StoredSpans, StoredWindows
from xtoken_pl.data.tokenized import check_windows, make_windows, stored_stream, window_at
from xtoken_pl.data.windows import Windower
from xtoken_pl.specs import PromptSettings
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import did_you_mean


@dataclass(eq=False)
class PartWindows:
    """Makes and holds the windows of one part.

    Attributes:
        part: The part.
        windower: Cuts its documents, with the teachers of the part.
        packing, normalize: See :class:`xtoken_pl.DistillDataModule`.
        prompts: How prompts are taken; None for windows without prompts.
        windows: The windows, once they are made.
        cached: Cached spans of the windows, by teacher name.
        scratch: Directory of stored windows of a stream.
    """

    part: Part
    windower: Windower
    packing: Packing
    normalize: bool
    prompts: PromptSettings | None = None
    windows: Dataset | IterableDataset | None = None
    cached: Mapping[str, StoredSpans] = field(default_factory=dict)
    scratch: TemporaryDirectory[str] | None = None
    _texts: Dataset | IterableDataset | None = None

    @property
    def size(self) -> int:
        """Number of stored windows."""
        return len(cast(Dataset, self.windows))

    @cached_property
    def maker(self) -> WindowMaker:
        """Maker of the windows; refuses a configuration that does not fit."""
        with self.part.named():
            options: dict[str, Any] = {"normalize": self.normalize, "prompts": self.prompts}
            return WindowMaker(self.part.source, self.windower, self.packing, **options)

    def read(self, *, streaming: bool) -> Dataset | IterableDataset:
        """Reads the texts: files as a whole, of data sets and streams the first row."""
        _ = self.maker  # before the texts
        if self._texts is None:
            with self.part.named():
                self._texts = load_source(self.part.source, streaming=streaming)
        return self._texts

    def make(self, *, streaming: bool, num_proc: int | None) -> Dataset | IterableDataset:
        """Makes the windows; those of streamed training data are made as they are read."""
        texts, maker = self.read(streaming=streaming), self.maker
        with self.part.named():
            windows = make_windows(texts, maker, num_proc)
            if isinstance(windows, Dataset) or self.part.split == "train":
                return windows
            # Processes validate together, and must know the number of batches: these windows are stored for this run.
            self.scratch = TemporaryDirectory(prefix="xtoken_pl_")
            return stored_stream(windows, maker, self.scratch.name)

    def hold(self, windows: Dataset | IterableDataset, caches: Mapping[str, SpanStore]) -> None:
        """Checks windows and the caches of the part's teachers, and holds both."""
        with self.part.named():  # a stream is first read here
            check_windows(windows, self.part.label, self.maker)
        length = self.windower.sequence_length
        own = {name: cache for name, cache in caches.items() if name in self.part.teachers}
        self.cached = {name: cache.split(self.part.key, cast(Dataset, windows), length) for name, cache in own.items()}
        self.windows, self._texts = windows, None

    def stream(self, **options: Any) -> BlockStream:
        """Returns the stream of its windows; ``options`` are those of :class:`BlockStream`."""
        with self.part.named():
            texts = load_source(self.part.source, streaming=True)
        return BlockStream(texts, self.maker, mark=self.part.mark, **options)


def read_all(parts: Iterable[PartWindows], *, streaming: bool) -> list[PartWindows]:
    """Returns the parts without windows, their texts read: a mistake in one is found before another is tokenized."""
    missing = [part for part in parts if part.windows is None]
    for part in missing:
        part.read(streaming=streaming)
    return missing


def connect(
    splits: Mapping[str, Sequence[Part]],
    windower: Windower,
    *,
    packing: Packing,
    normalize: bool,
    prompts: PromptSettings | None = None,
    before: Iterable[PartWindows] = (),
) -> dict[str, list[PartWindows]]:
    """Gives every part a windower with its teachers, one for each set of teachers.

    Args:
        splits: Parts by split.
        windower: Windower with all teachers.
        packing, normalize: See :class:`xtoken_pl.DistillDataModule`.
        prompts: How prompts are taken from the training data; None for windows without prompts.
        before: Parts that may hold the same windows already.
    """
    known, windowers = windower.teachers, {tuple(windower.teachers): windower}
    for names in {part.teachers for parts in splits.values() for part in parts} - windowers.keys():
        own = {name: known[name] for name in names}
        windowers[names] = Windower(windower.student, own, windower.sequence_length)
    parts_of = {
        split: [
            PartWindows(part, windowers[part.teachers], packing, normalize, prompts if split == "train" else None)
            for part in parts
        ]
        for split, parts in splits.items()
    }
    made = {old.part.key: old for old in before if old.windows is not None}
    for new in (part for parts in parts_of.values() for part in parts):
        old = made.get(new.part.key)
        if old is not None and old.maker.fingerprint == new.maker.fingerprint:
            new.windows, new.cached, new.scratch = old.windows, old.cached, old.scratch
    return parts_of


def open_windows(parts: Sequence[PartWindows]) -> StoredWindows | JoinedWindows:
    """Returns the stored windows of several parts as a loader reads them, one part after the other."""
    opened = [StoredWindows(cast(Dataset, p.windows), p.part.teachers, p.cached, p.part.mark) for p in parts]
    return opened[0] if len(opened) == 1 else JoinedWindows(opened)


def mixed_order(parts: Sequence[PartWindows]) -> MixedOrder | None:
    """Returns the order of the stored windows of parts with weights; None without weights, and for streams."""
    weights = [part.part.source.weight for part in parts]
    if None in weights or not isinstance(parts[0].windows, Dataset):
        return None
    names, sizes = [part.part.name for part in parts], [part.size for part in parts]
    return MixedOrder(tuple(names), tuple(sizes), tuple(weight or 0.0 for weight in weights))


def mixed_stream(parts: Sequence[PartWindows], block_size: int, **options: Any) -> BlockStream | MixedStream:
    """Returns the stream of one part, or the mixture of several.

    Args:
        parts: The parts, each with a weight if they are several.
        block_size: Number of windows that are shuffled together: of each part its share.
        options: Further options of :class:`BlockStream`.
    """
    if len(parts) == 1:
        return parts[0].stream(block_size=block_size, **options)
    weights = [part.part.source.weight or 0.0 for part in parts]
    streams: list[NamedStream] = []
    for part, weight in zip(parts, weights, strict=True):
        stream = part.stream(block_size=max(1, round(block_size * weight / sum(weights))), **options)
        streams.append(NamedStream(part.part.name, weight, stream, part.part.say_where))
    return MixedStream(streams)


def chosen(parts: list[PartWindows], source: str | None) -> list[PartWindows]:
    """Returns the parts of a split, or the one of a source.

    Raises:
        UserError: If there is no such source.
    """
    found = [part for part in parts if source in (None, part.part.name)]
    if not found:
        names = [part.part.name for part in parts if part.part.name]
        near = did_you_mean(str(source), names, "the configuration lists them") if names else ""
        raise UserError(f"source must be one of data.{parts[0].part.split}, got {source!r}{near or '; leave it out'}")
    return found


def window_of(parts: Sequence[PartWindows], index: int) -> Window:
    """Returns one window of some parts of a split, counted from 0, one part after the other.

    Raises:
        UserError: If there is no such window.
    """
    where = parts[0].part.label if len(parts) == 1 else parts[0].part.split
    if isinstance(parts[0].windows, Dataset):
        return window_at(open_windows(parts), where, index)
    if len(parts) > 1:
        names = ", ".join(part.part.name for part in parts)
        raise UserError(f"a window of several streams needs the name of its source, got none; give one of {names}")
    return parts[0].part.mark(window_at(cast(IterableDataset, parts[0].windows), where, index))
