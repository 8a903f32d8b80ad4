"""Commands that need no module and no trainer: ``project`` and ``audit``."""

from __future__ import annotations

import json
from pathlib import Path

from xtoken_pl.audit import CRITICAL, Category, CoverageAudit, draw, table
from xtoken_pl.files import atomic_path, refuse_existing
from xtoken_pl.projection import ProjectionParameters, build_projection
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer


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
    refuse_existing(Path(output), overwrite=overwrite)
    projection = build_projection(load_tokenizer(student), load_tokenizer(teacher), parameters)
    projection.save(output, overwrite=overwrite)
    counts = projection.counts
    print(f"W [{projection.num_student:,}, {projection.num_teacher:,}] of {student} -> {teacher}")
    for label, count in (("exact", counts.exact), ("multi-token", counts.multi_token), ("zero", counts.zero)):
        print(f"  {label:<12}{count:>9,} rows  {count / counts.total:7.2%}")
    print(f"written to {output}")


def audit(
    student: str,
    teacher: str,
    *,
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
        text: A text file, for the statistics of spans.
        critical: Categories of the student's tokens that must not be lost; numerals of 2 and 3 digits by default.
        json_output: A JSON file to write.
        picture: A PNG file to write.
        overwrite: Replace files that exist.
    """
    for output in filter(None, (json_output, picture)):
        refuse_existing(Path(output), overwrite=overwrite)
    if text is not None and not Path(text).is_file():
        raise FileNotFoundError(f"text must be a text file, there is none at {text!r}; check the path")
    result = CoverageAudit.of(
        CanonicalVocabulary.from_tokenizer(load_tokenizer(student)),
        CanonicalVocabulary.from_tokenizer(load_tokenizer(teacher)),
        critical=CRITICAL if critical is None else critical,
        text=None if text is None else Path(text).read_text(encoding="utf-8"),
    )
    print(table(result))
    if json_output is not None:
        with atomic_path(json_output, overwrite=overwrite) as part:
            part.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
        print(f"written to {json_output}")
    if picture is not None:
        with atomic_path(picture, overwrite=overwrite) as part:
            draw(result, part)
        print(f"written to {picture}")
