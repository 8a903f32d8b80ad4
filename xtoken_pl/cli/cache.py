"""``python -m xtoken_pl cache``: the verb, with the configuration of ``fit``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from xtoken_pl.checkpoints.fingerprints import cached_windows_fingerprint, config_fingerprint, model_fingerprint
from xtoken_pl.cli.parts_cli import run_with_parts
from xtoken_pl.data import DistillDataModule
from xtoken_pl.models import load_model
from xtoken_pl.models.placement import default_device
from xtoken_pl.teachers.cache.build import CacheBuilder, check_folder, open_manifest
from xtoken_pl.teachers.cache.checks import check_cacheable
from xtoken_pl.teachers.cache.lock import building
from xtoken_pl.teachers.cache.manifest import Identity, Manifest, Split, TopK
from xtoken_pl.teachers.cache.teacher_rows import RowFormat, TeacherRows
from xtoken_pl.teachers.local import FrozenModel
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.errors import UserError

#: Of a shard, where ``shard_windows`` is not given.
_SHARD_BYTES, _MAX_SHARD_WINDOWS = 2**28, 1024


def run(arguments: list[str]) -> None:
    """Runs the verb."""
    run_with_parts(cache_run, CacheOptions, arguments)


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """What is stored, and where.

    Attributes:
        teacher: Name of the teacher under model.teachers.
        output: Folder to write; the teacher's ``cache`` by default.
        top_k: Tokens stored of each row, or 'all'.
        precision: Bits of a log-probability: 16, or 32 (exact).
        batch_size: Windows that the teacher reads at a time; that of ``data`` by default.
        shard_windows: Windows of a shard; by default as many as fit in 256 MB, at most 1024.
        overwrite: Start again where a cache is. Leave it out to go on after a kill: finished shards would go.

    Raises:
        UserError: If batch_size or shard_windows is less than 1.
    """

    teacher: str
    output: str | None = None
    top_k: TopK = 64
    precision: int = 16
    batch_size: int | None = None
    shard_windows: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("shard_windows", self.shard_windows)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be >= 1, got {value}")


def cache_run(
    module: MultiTeacherDistillModule, data: DistillDataModule, _: Mapping[str, Any], options: CacheOptions
) -> None:
    """Builds or verifies the cache that a run's configuration and the options describe."""
    if not isinstance(data, DistillDataModule):
        raise UserError(f"a cache is built from the windows of DistillDataModule, got {type(data).__name__}")
    build_cache(module, data, options)


def build_cache(module: MultiTeacherDistillModule, data: DistillDataModule, options: CacheOptions) -> Manifest:
    """Builds the cache of one teacher, goes on with one that was cut off, or verifies a finished one.

    Args:
        module: With the student, for its tokenizer, and all teachers: windows are cut where all of them end a token.
        data: The texts; every split that is given is stored.
        options: What is stored, and where.

    Raises:
        UserError: If the folder holds something else.
        UserError: If another process builds there.
        UserError: If an option is none of its choices, or the teacher's loss cannot be trained from a cache.
    """
    teacher = options.teacher
    if data.streaming:
        raise UserError("a cache knows windows by their place, and a stream has none; set data.streaming to false")
    if teacher not in module.teachers:
        raise UserError(f"teacher must be one of {', '.join(module.teachers) or 'model.teachers'}, got {teacher!r}")
    source, vocabulary = module.teachers[teacher], module.teacher_vocabularies[teacher]
    folder = _folder(options.output or source.cache, teacher)
    check_cacheable(teacher, source.loss, module.weighting)
    row_format = RowFormat(options.top_k, options.precision, len(vocabulary), int(vocabulary.exists.sum()))
    check_folder(folder)
    windows = _windows(module, data)
    identity = Identity(
        model=source.model,
        revision=source.revision,
        dtype=source.dtype,
        quantization=source.quantization,
        model_fingerprint=model_fingerprint(source),
        config_fingerprint=config_fingerprint(source),
        student_tokenizer=module.student_vocabulary.fingerprint,
        teacher_tokenizer=vocabulary.fingerprint,
        sequence_length=data.sequence_length,
        temperature=source.temperature,
        top_k=options.top_k,
        precision=options.precision,
        shard_windows=options.shard_windows or _shard_windows(row_format.bytes_per_span * data.sequence_length),
        splits={name: Split(len(part), cached_windows_fingerprint(part, teacher)) for name, part in windows.items()},
    )
    with building(folder):
        manifest = open_manifest(folder, identity, overwrite=options.overwrite)
        builder = CacheBuilder(folder, manifest, teacher, windows, options.batch_size or data.batch_size)
        if any((missing := builder.missing()).values()):
            device = default_device()
            role, separates = f"teacher {teacher!r}", data.packing == "separate"
            loaded = load_model(source, vocabulary, role=role, device=device, separates=separates)
            model = FrozenModel(loaded, cpu_offload=source.cpu_offload)
            builder.build(missing, TeacherRows(teacher, model, row_format, source.temperature, device))
        else:
            print(f"{folder} is finished; all {len(manifest.entries)} shards are as they were written")
    num_spans, num_tokens, num_bytes = (
        sum(getattr(entry, name) for entry in manifest.entries) for name in ("num_spans", "num_tokens", "num_bytes")
    )
    print(f"{num_spans:,} spans, {num_bytes / max(1, num_tokens):.1f} bytes per student token, in {folder}")
    return manifest


def _folder(given: str | None, teacher: str) -> Path:
    if given is None:
        raise UserError(f"a cache needs a folder; give --output, or set `cache` of teacher {teacher!r}")
    return Path(given)


def _windows(module: MultiTeacherDistillModule, data: DistillDataModule) -> dict[str, Dataset]:
    data.connect(module.student_vocabulary, module.teacher_vocabularies)
    data.setup("fit")
    if data.sources["test"] is not None:
        data.setup("test")
    return data.datasets


def _shard_windows(window_bytes: int) -> int:
    return max(1, min(_MAX_SHARD_WINDOWS, _SHARD_BYTES // window_bytes))
