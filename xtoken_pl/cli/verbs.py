"""Commands that need no module and no trainer: ``project``, ``prefix_map`` and ``audit``."""

from __future__ import annotations

import json
from pathlib import Path

from xtoken_pl.audit import CRITICAL, Category, CoverageAudit, draw, table
from xtoken_pl.prefix_map import build_prefix_map
from xtoken_pl.projection import Projection, ProjectionParameters, build_projection
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path, check_target, read_text


def project(
    student: str, teacher: str, output: str, *, beta: float = 0.9, gamma: float = 0.1, overwrite: bool = False
) -> None:
    """Build the projection matrix W between two tokenizers and store it.

    Args:
        student: Folder or hub id of the student's tokenizer.
        teacher: Folder or hub id of the teacher's tokenizer.
        output: The safetensors file to write.
        beta: Weight of the first teacher token that writes a student token.
        gamma: Factor from one teacher token to the next.
        overwrite: Replace a file that exists.
    """
    parameters = ProjectionParameters(beta=beta, gamma=gamma)
    check_target(Path(output), kind="file", overwrite=overwrite)
    projection = build_projection(load_tokenizer(student), load_tokenizer(teacher), parameters)
    projection.save(output, overwrite=overwrite)
    counts = projection.counts
    print(f"W [{projection.num_student:,}, {projection.num_teacher:,}] of {student} -> {teacher}")
    for label, count in (("exact", counts.exact), ("multi-token", counts.multi_token), ("zero", counts.zero)):
        print(f"  {label:<12}{count:>9,} rows  {count / counts.total:7.2%}")
    print(f"written to {output}")


def prefix_map(student: str, teacher: str, output: str, *, overwrite: bool = False) -> None:
    """Compile the prefix map between two tokenizers, which BytePrefixKL reads, and store it.

    Args:
        student: Folder or hub id of the student's tokenizer.
        teacher: Folder or hub id of the teacher's tokenizer.
        output: The safetensors file to write.
        overwrite: Replace a file that exists.
    """
    check_target(Path(output), kind="file", overwrite=overwrite)
    compiled = build_prefix_map(load_tokenizer(student), load_tokenizer(teacher))
    compiled.save(output, overwrite=overwrite)
    print(f"prefix map of {student} -> {teacher}")
    for label, count, total in compiled.summary():
        print(f"  {label:<52}{count:>9,}  {count / max(1, total):7.2%}")
    print(f"written to {output}")


def audit(
    student: str,
    teacher: str,
    *,
    projection: str | None = None,
    text: str | None = None,
    critical: list[Category] | None = None,
    json_output: str | None = None,
    picture: str | None = None,
    overwrite: bool = False,
) -> None:
    """Show what a student can learn from a teacher of another tokenizer, and which loss suits the pair.

    Args:
        student: Folder or hub id of the student's tokenizer.
        teacher: Folder or hub id of the teacher's tokenizer.
        projection: A stored W; built where none is given.
        text: A text file (UTF-8), for the statistics of spans.
        critical: Categories of the student's tokens that must not be lost, '[numerals_2, numerals_3]' by default.
        json_output: A JSON file to write.
        picture: A PNG file to write.
        overwrite: Replace files that exist.
    """
    outputs = [Path(output) for output in (json_output, picture) if output is not None]
    for output in outputs:
        check_target(output, kind="file", overwrite=overwrite)
    if picture is not None and Path(picture).suffix.lower() != ".png":
        raise UserError(f"picture must be a .png file, got {picture!r}")
    if len({output.absolute() for output in outputs}) < len(outputs):
        raise UserError(f"json_output and picture must be two files, both are {json_output!r}")
    content = None if text is None else read_text(text, setting="text")
    loaded = None if projection is None else Projection.load(projection)
    result = CoverageAudit.from_vocabularies(
        CanonicalVocabulary.from_tokenizer(load_tokenizer(student)),
        CanonicalVocabulary.from_tokenizer(load_tokenizer(teacher)),
        loaded,
        critical=CRITICAL if critical is None else critical,
        text=content,
    )
    print(table(result))
    if json_output is not None:
        with atomic_path(json_output, kind="file", overwrite=overwrite) as part:
            part.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
        print(f"written to {json_output}")
    if picture is not None:
        with atomic_path(picture, kind="file", overwrite=overwrite) as part:
            draw(result, part)
        print(f"written to {picture}")
