"""``python -m xtoken_pl cache``: stores a teacher's outputs for the windows of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from datasets import Dataset

from xtoken_pl.checkpoints.fingerprints import cached_windows_fingerprint
from xtoken_pl.cli.parts_cli import run_with_parts
from xtoken_pl.data import DistillDataModule
from xtoken_pl.losses import RowContent
from xtoken_pl.losses.row_content import RowKind
from xtoken_pl.teachers.cache.build import CacheBuilder, check_folder, open_manifest
from xtoken_pl.teachers.cache.lock import building
from xtoken_pl.teachers.cache.manifest import Identity, Manifest, Split, TopK
from xtoken_pl.teachers.cache.origin import ModelOrigin, ServerOrigin
from xtoken_pl.teachers.cache.reader import CACHE_WAY_OUT
from xtoken_pl.teachers.cache.row_format import RowFormat
from xtoken_pl.teachers.cache.teacher_rows import TeacherRows
from xtoken_pl.teachers.source import check_source, needs_of
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.checks import check_at_least_one, check_choice
from xtoken_pl.utilities.errors import UserError

#: Limits of a shard if ``shard_windows`` is not given.
_SHARD_BYTES, _MAX_SHARD_WINDOWS = 2**28, 1024


def run(arguments: list[str]) -> None:
    """Runs the verb."""
    run_with_parts(lambda module, data, _, options: build_cache(module, data, options), CacheOptions, arguments)


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Options of ``cache`` in addition to those of ``fit``.

    Attributes:
        teacher: Name of the teacher under model.teachers.
        output: Directory to write; the teacher's ``cache`` by default.
        rows: 'span_starts' stores one row for each span, 'all' stores every row of the teacher; by default what its
            loss and the weighting read.
        top_k: Number of tokens stored per row, or 'all'; by default 64, or as many as the teacher's server gives.
        precision: Bits of a log-probability: 16, or 32 (exact).
        batch_size: Windows per forward pass of the teacher, or asked for at a time; ``data.batch_size`` by default.
        shard_windows: Windows per shard; by default as many as fit in 256 MB, at most 1024.
        overwrite: Delete an existing cache and start again. Leave it out to resume an interrupted build.

    Raises:
        UserError: If batch_size or shard_windows is less than 1, or there are no such rows.
    """

    teacher: str
    output: str | None = None
    rows: RowKind | None = None
    top_k: TopK | None = None
    precision: int = 16
    batch_size: int | None = None
    shard_windows: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("shard_windows", self.shard_windows)):
            check_at_least_one(name, value)
        if self.rows is not None:
            check_choice("rows", self.rows, RowKind)


def build_cache(module: MultiTeacherDistillModule, data: DistillDataModule, options: CacheOptions) -> Manifest:
    """Builds the cache of one teacher, resumes an interrupted build, or verifies a finished one.

    Args:
        module: Module with the student and all teachers: windows are cut where all teachers of a source end a token.
        data: Data module; every source that the teacher teaches on is stored.
        options: Options of the verb.

    Raises:
        UserError: If the directory holds something else, or another process builds there.
        UserError: If an option has an invalid value, or the teacher's loss or the run cannot be trained from a cache.
    """
    teacher = options.teacher
    _check_run(module, data, teacher)
    source, vocabulary = module.teachers_with_losses[teacher], module.teacher_vocabularies[teacher]
    output = options.output or source.cache
    if output is None:
        raise UserError(f"a cache needs a directory; give --output, or set `cache` of teacher {teacher!r}")
    folder = Path(output)
    rows = options.rows or needs_of(source.span_loss, module.weighting).rows
    check_source(teacher, "its cache", RowContent(rows), source.span_loss, module.weighting, CACHE_WAY_OUT)
    kind = ModelOrigin if source.server is None else ServerOrigin
    origin = kind(teacher, source, vocabulary, data.sequence_length, data.packing == "separate")
    row_format = RowFormat(
        rows,
        origin.choose_top_k(options.top_k),
        options.precision,
        num_ids=len(vocabulary),
        num_tokens=int(vocabulary.exists.sum()),
        has_text=source.temperature != 1.0,
    )
    window_bytes = row_format.bytes_per_row * data.sequence_length
    check_folder(folder)
    windows = _windows(module, data, teacher)
    begun = Manifest.load(folder).identity if Manifest.exists(folder) and not options.overwrite else None
    identity = Identity(
        model=source.model,
        revision=source.revision,
        **origin.describe(begun),
        student_tokenizer=module.student_vocabulary.fingerprint,
        teacher_tokenizer=vocabulary.fingerprint,
        sequence_length=data.sequence_length,
        temperature=source.temperature,
        rows=rows,
        top_k=row_format.top_k,
        precision=options.precision,
        shard_windows=options.shard_windows or min(_MAX_SHARD_WINDOWS, max(1, _SHARD_BYTES // window_bytes)),
        splits={name: Split(len(part), cached_windows_fingerprint(part, teacher)) for name, part in windows.items()},
    )
    with building(folder):
        manifest = open_manifest(folder, identity, overwrite=options.overwrite)
        builder = CacheBuilder(folder, manifest, teacher, windows, options.batch_size or data.batch_size)
        if any((missing := builder.missing()).values()):
            builder.build(missing, TeacherRows(teacher, origin.open(row_format, identity)))
        else:
            print(f"{folder} is complete; all {len(manifest.entries)} shards are unchanged")
    _print_size(manifest, folder)
    return manifest


def _check_run(module: MultiTeacherDistillModule, data: DistillDataModule, teacher: str) -> None:
    """Checks that a cache of a teacher could be used by the run."""
    if data.streaming:
        raise UserError("a cache needs the positions of windows, and a stream has none; set data.streaming to false")
    if teacher not in module.teachers:
        raise UserError(f"teacher must be one of {', '.join(module.teachers) or 'model.teachers'}, got {teacher!r}")
    if module.rollouts is not None:
        raise UserError(
            "a cache knows the texts of the data only, and with model.rollouts teachers must read what the student "
            f"writes, got share={module.rollouts.share:g}, so that fit would refuse the cache; leave model.rollouts "
            "out, or set model.rollouts.share to 0, for both verbs"
        )


def _print_size(manifest: Manifest, folder: Path) -> None:
    num_rows = sum(entry.num_rows for entry in manifest.entries)
    num_tokens = sum(entry.num_tokens for entry in manifest.entries)
    num_bytes = sum(entry.num_bytes for entry in manifest.entries)
    print(f"{num_rows:,} rows, {num_bytes / max(1, num_tokens):.1f} bytes per student token, in {folder}")


def _windows(module: MultiTeacherDistillModule, data: DistillDataModule, teacher: str) -> dict[str, Dataset]:
    """Makes the windows of the sources that a teacher teaches on."""
    data.connect(module.student_vocabulary, module.teacher_vocabularies)
    taught = [part for split in data.splits for part in data.parts(split) if teacher in part.part.teachers]
    for part in taught:
        part.hold(part.make(streaming=False, num_proc=data.num_proc), {})
    return {part.part.key: cast(Dataset, part.windows) for part in taught}
