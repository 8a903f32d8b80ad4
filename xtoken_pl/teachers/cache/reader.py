"""A finished cache: checked against a run when it is opened, read in the workers of the data loader."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from xtoken_pl.batch import NO_WINDOW, SpanArrays, TeacherBatch
from xtoken_pl.checkpoints.fingerprints import (
    cached_windows_fingerprint,
    config_fingerprint,
    model_fingerprint,
    weight_files,
)
from xtoken_pl.losses import SpanLoss
from xtoken_pl.scoring.tasks import KnownRows
from xtoken_pl.specs import Teacher
from xtoken_pl.teachers.cache.checks import check_cacheable
from xtoken_pl.teachers.cache.manifest import Manifest, ShardEntry
from xtoken_pl.teachers.cache.shards import Shard
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.weighting import Weighting

_MAX_OPEN_SHARDS = 32


def open_caches(
    teachers: Mapping[str, Teacher],
    weighting: Weighting,
    student: CanonicalVocabulary,
    vocabularies: Mapping[str, CanonicalVocabulary],
) -> dict[str, TeacherCache]:
    """The cache of every teacher that has one, checked against the run.

    Args:
        teachers: By name.
        weighting: Between them.
        student, vocabularies: Of the student and of each teacher.
    """
    caches: dict[str, TeacherCache] = {}
    for name, teacher in teachers.items():
        if teacher.cache is not None:
            check_cacheable(name, teacher.loss, weighting)
            caches[name] = TeacherCache(name, teacher.cache, vocabularies[name])
            caches[name].check_teacher(teacher, student)
    return caches


class TeacherCache:
    """What was stored of one teacher.

    Args:
        name: The teacher's.
        folder: That ``python -m xtoken_pl cache`` wrote.
        vocabulary: The teacher's.

    Raises:
        UserError: If there is no cache, or a shard is missing.
        UserError: If the manifest, or a shard's size, is not as it was written.
    """

    def __init__(self, name: str, folder: str, vocabulary: CanonicalVocabulary) -> None:
        self.name = name
        self.vocabulary = vocabulary
        self._num_tokens = int(vocabulary.exists.sum())
        self._holes: dict[torch.device, Tensor] = {}  # copied once to each
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self.identity = self.manifest.identity
        for split, part in self.identity.splits.items():
            finished = self.manifest.shards.get(split, [])
            if sum(entry.num_windows for entry in finished) != part.num_windows:
                raise UserError(
                    f"a cache must be finished, {folder!r} has {len(finished)} of {self.manifest.num_shards(split)} "
                    f"shards of {split}; run `python -m xtoken_pl cache` again, it goes on"
                )
            for entry in finished:
                self._check_file(entry)

    def _check_file(self, entry: ShardEntry) -> None:
        path = self.folder / entry.file
        if not path.is_file():
            raise UserError(f"{path} is missing; run `python -m xtoken_pl cache` again, it makes it anew")
        if (size := path.stat().st_size) != entry.num_bytes:
            raise UserError(
                f"{path} must have {entry.num_bytes:,} bytes, it has {size:,}; run `python -m xtoken_pl cache` again, "
                "it makes it anew"
            )

    def check_teacher(self, teacher: Teacher, student: CanonicalVocabulary) -> None:
        """Refuses another teacher, temperature or tokenizer than the cache was built with.

        Weights are compared by their fingerprint. Where those of one side are not within reach, or one side is named
        by a commit of the hub and the other by its files, configurations are compared where there is one, and a
        warning says that weights were not. Another dtype or quantization gives a warning, too.
        """
        sides = {"student": (student, self.identity.student_tokenizer)}
        sides[f"teacher {self.name!r}"] = (self.vocabulary, self.identity.teacher_tokenizer)
        for side, (ours, theirs) in sides.items():
            if ours.fingerprint != theirs:
                self._refuse(
                    f"was built with another tokenizer of the {side} ({theirs[:8]}) than {ours.name!r} "
                    f"({ours.fingerprint[:8]})"
                )
        if teacher.temperature != self.identity.temperature:
            self._refuse(
                f"holds distributions at temperature {self.identity.temperature:g}, the run has {teacher.temperature:g}"
            )
        self._check_weights(teacher)
        loaded, named = (f"dtype {side.dtype}, quantization {side.quantization}" for side in (self.identity, teacher))
        if loaded != named:
            rank_zero_warn(
                f"the cache of teacher {self.name!r} was built with {loaded}, which it keeps; the run names {named}"
            )

    def _check_weights(self, teacher: Teacher) -> None:
        built_with, found = self.identity.model_fingerprint, _or_none(model_fingerprint, teacher)
        if found is not None and _has_weights(teacher) and _kind(found) == _kind(built_with):
            if found != built_with:
                self._refuse(
                    f"was built with other weights ({built_with[:15]}) than those of {teacher.model!r} ({found[:15]})"
                )
            return
        config = _or_none(config_fingerprint, teacher)
        if config not in (None, self.identity.config_fingerprint):
            self._refuse(
                f"was built with another config.json ({self.identity.config_fingerprint[:8]}) than that of "
                f"{teacher.model!r} ({config[:8]})"
            )
        rank_zero_warn(
            f"the weights of teacher {self.name!r} were not compared with those its cache was built from, only "
            f"{'its tokenizer was' if config is None else 'its tokenizer and config.json were'}: built from "
            f"{self.identity.model!r} (revision {self.identity.revision!r}), the run names {teacher.model!r} (revision "
            f"{teacher.revision!r})"
        )

    def _refuse(self, reason: str) -> None:
        raise UserError(
            f"the cache {str(self.folder)!r} of teacher {self.name!r} {reason}. Give what it was built with, build "
            "another with `python -m xtoken_pl cache`, or leave `cache` out"
        )

    def restrict(self, loss: SpanLoss) -> None:
        """Lets a bound loss see no more single tokens than are stored."""
        if self.identity.top_k == "all":
            return
        if (change := loss.limit_teacher_tokens(self.identity.top_k)) is not None:
            rank_zero_info(f"teacher {self.name!r}: {change}, as the cache stores no more of a row")

    def rows(self, view: TeacherBatch) -> KnownRows:
        """What the teacher's task reads of a batch.

        Raises:
            UserError: If the batch holds nothing of the cache.
        """
        if view.cached is None:
            raise UserError(
                f"teacher {self.name!r} has a cache, but the batch holds nothing of it; use DistillDataModule, which "
                "reads it, or leave `cache` out"
            )
        labels = view.tokens.labels[view.spans.teacher_first]
        if labels.device not in self._holes:
            self._holes[labels.device] = torch.from_numpy(~self.vocabulary.exists).to(labels.device)
        return KnownRows(view.cached, labels, self._holes[labels.device], self._num_tokens)

    def split(self, name: str, windows: Dataset, sequence_length: int) -> CachedSplit:
        """The stored spans of a split's windows.

        Raises:
            UserError: If the split was not stored, or was made of other windows.
        """
        stored = self.identity.splits.get(name)
        if stored is None:
            self._refuse(f"has no {name!r} split (it has {', '.join(self.identity.splits)})")
        assert stored is not None
        if sequence_length != self.identity.sequence_length:
            self._refuse(
                f"was built with sequence_length {self.identity.sequence_length}, the run has {sequence_length}"
            )
        if len(windows) != stored.num_windows:
            self._refuse(
                f"holds {stored.num_windows:,} windows of {name}, the run has {len(windows):,}: {_OTHER_WINDOWS}"
            )
        if (found := cached_windows_fingerprint(windows, self.name)) != stored.fingerprint:
            self._refuse(
                f"was built with other windows of {name} ({stored.fingerprint[:8]}) than the run's ({found[:8]}): "
                f"{_OTHER_WINDOWS}"
            )
        return CachedSplit(self.name, self.folder, self.manifest.shards.get(name, []))


class CachedSplit:
    """Reads windows of a split; shards are opened where, and when, they are needed.

    A process keeps those open that it read last: a cache may have thousands, and shuffled windows are in all of them.
    """

    def __init__(self, teacher: str, folder: Path, shards: Sequence[ShardEntry]) -> None:
        self._teacher = teacher
        self._paths = [folder / entry.file for entry in shards]
        self._first = [0, *accumulate(entry.num_windows for entry in shards)]
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def read(self, index: int, window: Mapping[str, Any]) -> SpanArrays:
        """What is stored of window ``index``, verified.

        Raises:
            UserError: If it is damaged, or was made of another window.
        """
        if index == NO_WINDOW:
            return self._shard(0).nothing()
        number = bisect_right(self._first, index) - 1
        return self._shard(number).read(index - self._first[number], window, self._teacher)

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            self._open[number] = Shard(self._paths[number])
        self._open.move_to_end(number)
        if len(self._open) > _MAX_OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # every process opens its own


_OTHER_WINDOWS = (
    "the texts or their packing differ, or the tokenizers of all teachers, since windows are cut where all of them end "
    "a token"
)


def _kind(fingerprint: str) -> str:
    """What it was taken from: a commit of the hub, or files."""
    return fingerprint.partition(":")[0]


def _or_none(fingerprint: Callable[[Teacher], str], teacher: Teacher) -> str | None:
    """None where the teacher's files are not within reach."""
    try:
        return fingerprint(teacher)
    except ValueError:
        return None


def _has_weights(teacher: Teacher) -> bool:
    """Whether a folder holds more than a configuration and a tokenizer; a hub id's commit names its weights anyway."""
    folder = Path(teacher.model)
    return not folder.is_dir() or bool(weight_files(folder))
