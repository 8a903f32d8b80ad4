"""``python -m xtoken_pl audit``: how well two tokenizers fit, and which loss suits the pair."""

from __future__ import annotations

import json
from pathlib import Path

from xtoken_pl.audit import CRITICAL, Category, CoverageAudit, draw, table
from xtoken_pl.cli.usage import run_function
from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path, check_target, read_text


def run(arguments: list[str]) -> None:
    """Runs the verb."""
    run_function(audit, arguments)


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
