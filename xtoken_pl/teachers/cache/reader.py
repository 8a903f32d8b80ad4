"""Reads a finished cache: checks it against the run when opened, then reads shards in the data loader's workers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lightning.pytorch.utilities import rank_zero_warn

from xtoken_pl.batch import NO_WINDOW, RowArrays, TeacherBatch
from xtoken_pl.checkpoints.fingerprints import (
    cached_windows_fingerprint,
    config_fingerprint,
    fingerprint_or_none,
    is_same_model,
    model_fingerprint,
    weight_files,
)
from xtoken_pl.checkpoints.served_weights import model_of_fingerprint
from xtoken_pl.losses import RowContent
from xtoken_pl.scoring.tasks import GivenRows
from xtoken_pl.specs import Teacher
from xtoken_pl.teachers.cache.manifest import SERVED_DTYPE, Manifest, ShardEntry
from xtoken_pl.teachers.cache.shards import Shard
from xtoken_pl.teachers.source import GivenSource, check_source
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.weighting import Weighting

if TYPE_CHECKING:
    from datasets import Dataset

_MAX_OPEN_SHARDS = 32
#: What to do where a loss or a weighting reads more rows than a cache has.
CACHE_WAY_OUT = "build the cache with --rows all, or leave `cache` out"


def open_caches(
    teachers: Mapping[str, Teacher],
    weighting: Weighting,
    student: CanonicalVocabulary,
    vocabularies: Mapping[str, CanonicalVocabulary],
) -> dict[str, TeacherCache]:
    """Opens the cache of every teacher that has one, and checks it against the run.

    Args:
        teachers: Teachers by name, with their losses.
        weighting: Weighting of the teachers.
        student: Vocabulary of the student.
        vocabularies: Vocabulary of each teacher.
    """
    caches: dict[str, TeacherCache] = {}
    for name, teacher in teachers.items():
        if teacher.cache is not None:
            caches[name] = cache = TeacherCache(name, teacher.cache, vocabularies[name])
            check_source(name, "its cache", cache.gives, teacher.span_loss, weighting, CACHE_WAY_OUT)
            cache.check_teacher(teacher, student)
    return caches


class TeacherCache(GivenSource):
    """The cache of one teacher.

    Args:
        name: Name of the teacher.
        folder: Cache directory, as written by ``python -m xtoken_pl cache``.
        vocabulary: Vocabulary of the teacher.

    Raises:
        UserError: If there is no cache, a shard is missing or has the wrong size, or the manifest is damaged.
    """

    def __init__(self, name: str, folder: str, vocabulary: CanonicalVocabulary) -> None:
        super().__init__(name, vocabulary)
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self.identity = self.manifest.identity
        for split, part in self.identity.splits.items():
            finished = self.manifest.shards.get(split, [])
            if sum(entry.num_windows for entry in finished) != part.num_windows:
                raise UserError(
                    f"a cache must be finished, but {folder!r} has {len(finished)} of "
                    f"{self.manifest.num_shards(split)} shards of {split}; run `python -m xtoken_pl cache` again to "
                    "resume it"
                )
            for entry in finished:
                self._check_file(entry)

    @property
    def gives(self) -> RowContent:
        """The rows that are stored, with as many tokens."""
        return RowContent(self.identity.rows, None if self.identity.top_k == "all" else self.identity.top_k)

    def _check_file(self, entry: ShardEntry) -> None:
        path = self.folder / entry.file
        if not path.is_file():
            raise UserError(f"{path} is missing; run `python -m xtoken_pl cache` again to rebuild it")
        if (size := path.stat().st_size) != entry.num_bytes:
            raise UserError(
                f"{path} must have {entry.num_bytes:,} bytes, but has {size:,}; run `python -m xtoken_pl cache` again "
                "to rebuild it"
            )

    def check_teacher(self, teacher: Teacher, student: CanonicalVocabulary) -> None:
        """Checks that teacher, temperature and tokenizers are those that the cache was built with.

        If the weights are available, their fingerprint is compared. If they are not, or if one fingerprint is a commit
        of the hub and the other is computed from files, the configurations are compared if possible, and a warning
        says that the weights were not. A different dtype or quantization also gives a warning. Of a cache that was
        built from the run's server, which is not contacted, the model's name and the configuration are compared.
        """
        sides = {"student": (student, self.identity.student_tokenizer)}
        sides[f"teacher {self.name!r}"] = (self.vocabulary, self.identity.teacher_tokenizer)
        for side, (ours, theirs) in sides.items():
            if ours.fingerprint != theirs:
                self._refuse(
                    f"was built with a tokenizer of the {side} ({theirs[:8]}) that differs from {ours.name!r} "
                    f"({ours.fingerprint[:8]})"
                )
        if teacher.temperature != self.identity.temperature:
            self._refuse(
                f"holds distributions at temperature {self.identity.temperature:g}, but the run has "
                f"{teacher.temperature:g}"
            )
        if self.is_served and teacher.server is not None:
            self._check_served(teacher)
            return
        self._check_weights(teacher)
        if self.is_served:
            return
        loaded, named = (f"dtype {side.dtype}, quantization {side.quantization}" for side in (self.identity, teacher))
        if loaded != named:
            rank_zero_warn(
                f"the cache of teacher {self.name!r} was built with {loaded}; the run sets {named}, which has no effect"
            )

    @property
    def is_served(self) -> bool:
        """Whether the cache was built from a server."""
        return self.identity.dtype == SERVED_DTYPE

    def _check_served(self, teacher: Teacher) -> None:
        assert teacher.server is not None
        built_with, named = model_of_fingerprint(self.identity.model_fingerprint), teacher.server.model
        if built_with != named:
            self._refuse(f"was built from a server's model {built_with!r}, but the server of this run has {named!r}")
        self._check_config(teacher)

    def _check_weights(self, teacher: Teacher) -> None:
        built_with, found = self.identity.model_fingerprint, fingerprint_or_none(model_fingerprint, teacher)
        is_same = is_same_model(found, built_with) if found is not None and _has_weights(teacher) else None
        if found is not None and is_same is False:
            adapter = "without an adapter" if teacher.adapter is None else f"with the adapter {teacher.adapter!r}"
            self._refuse(
                f"was built with weights ({_short(built_with)}) that differ from those of {teacher.model!r} {adapter} "
                f"({_short(found)})"
            )
        if is_same:
            return
        is_compared = self._check_config(teacher)
        rank_zero_warn(
            f"the weights of teacher {self.name!r} could not be compared with those its cache was built from; only "
            f"{'its tokenizer and config.json were' if is_compared else 'its tokenizer was'}. Cache: "
            f"{self.identity.model!r} (revision {self.identity.revision!r}); run: {teacher.model!r} (revision "
            f"{teacher.revision!r})"
        )

    def _check_config(self, teacher: Teacher) -> bool:
        """Compares the configurations; returns whether both are known."""
        built_with, found = self.identity.config_fingerprint, fingerprint_or_none(config_fingerprint, teacher)
        if not built_with or found is None:
            return False
        if found != built_with:
            self._refuse(
                f"was built with a config.json ({built_with[:8]}) that differs from that of {teacher.model!r} "
                f"({found[:8]})"
            )
        return True

    def _refuse(self, reason: str) -> NoReturn:
        raise UserError(
            f"the cache {str(self.folder)!r} of teacher {self.name!r} {reason}. Use what it was built with, build "
            "another cache with `python -m xtoken_pl cache`, or leave `cache` out"
        )

    def rows(self, view: TeacherBatch) -> GivenRows:
        """Returns the teacher rows of a batch.

        Raises:
            UserError: If the batch holds no cached rows.
        """
        if view.known is None:
            raise UserError(
                f"teacher {self.name!r} has a cache, but the batch holds no rows from it; use DistillDataModule, which "
                "reads them, or leave `cache` out"
            )
        return self.given(view.known, view)

    def split(self, name: str, windows: Dataset, sequence_length: int) -> CachedSplit:
        """Returns the cached rows of the windows of a split, or of a source with a name (``train_math``).

        Raises:
            UserError: If the cache lacks the split, or was built from other windows.
        """
        if (stored := self.identity.splits.get(name)) is None:
            self._refuse(f"has no {name!r} split (it has {', '.join(self.identity.splits)})")
        if sequence_length != self.identity.sequence_length:
            self._refuse(
                f"was built with sequence_length {self.identity.sequence_length}, but the run has {sequence_length}"
            )
        if len(windows) != stored.num_windows:
            self._refuse(
                f"holds {stored.num_windows:,} windows of {name}, but the run has {len(windows):,}: {_OTHER_WINDOWS}"
            )
        if (found := cached_windows_fingerprint(windows, self.name)) != stored.fingerprint:
            self._refuse(
                f"was built from windows of {name} ({stored.fingerprint[:8]}) that differ from the run's "
                f"({found[:8]}): {_OTHER_WINDOWS}"
            )
        return CachedSplit(self.name, self.folder, self.manifest.shards.get(name, []))


class CachedSplit:
    """Reads the windows of a split; each process opens shards when it first needs them.

    Only the most recently used shards stay open: a cache may have thousands, and shuffled windows are in all of them.
    """

    def __init__(self, teacher: str, folder: Path, shards: Sequence[ShardEntry]) -> None:
        self._teacher = teacher
        self._paths = [folder / entry.file for entry in shards]
        self._first = [0, *accumulate(entry.num_windows for entry in shards)]

    def read(self, index: int, window: Mapping[str, Any]) -> RowArrays:
        """Returns the cached rows of window ``index``, verified against the window.

        Raises:
            UserError: If they are damaged, or belong to another window.
        """
        if index == NO_WINDOW:
            return self._shard(0).nothing()
        number = bisect_right(self._first, index) - 1
        return self._shard(number).read(index - self._first[number], window, self._teacher)

    @cached_property
    def _shard(self) -> Callable[[int], Shard]:
        return lru_cache(_MAX_OPEN_SHARDS)(lambda number: Shard(self._paths[number]))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_shard"}  # every process opens files


_OTHER_WINDOWS = (
    "the texts, data.packing, data.normalize, a tokenizer or the teachers of a source differ (windows are cut where a "
    "token ends for all teachers of their source)"
)


def _short(fingerprint: str) -> str:
    """The beginning of a fingerprint, and of an adapter's."""
    return "+".join(part[:15] for part in fingerprint.split("+"))


def _has_weights(teacher: Teacher) -> bool:
    """Whether the weights are available; the commit of a hub id identifies them in any case."""
    folders = [Path(files) for files in (teacher.model, teacher.adapter) if files is not None]
    return all(not folder.is_dir() or weight_files(folder) for folder in folders)
