"""``python -m xtoken_pl audit``: how well two tokenizers fit, and which loss suits the pair."""

from __future__ import annotations

import json
from pathlib import Path

from xtoken_pl.audit import CRITICAL, Category, CoverageAudit, draw, table
from xtoken_pl.cli.outputs import check_output, write_output
from xtoken_pl.cli.usage import run_function
from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import read_text


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
        student: Directory or hub id of the student's tokenizer.
        teacher: Directory or hub id of the teacher's tokenizer.
        projection: A file with W; built by default.
        text: A text file (UTF-8) for the statistics of spans.
        critical: Categories of the student's tokens that must not be lost, '[numerals_2, numerals_3]' by default.
        json_output: A JSON file to write.
        picture: A PNG file to write.
        overwrite: Replace files that exist.
    """
    check_output("json_output", json_output, overwrite=overwrite)
    check_output("picture", picture, overwrite=overwrite, suffix=".png")
    if picture is not None and json_output is not None and Path(picture).absolute() == Path(json_output).absolute():
        raise UserError(f"json_output and picture must be two files, both are {json_output!r}")
    result = CoverageAudit.from_vocabularies(
        CanonicalVocabulary.from_tokenizer(load_tokenizer(student)),
        CanonicalVocabulary.from_tokenizer(load_tokenizer(teacher)),
        None if projection is None else Projection.load(projection),
        critical=CRITICAL if critical is None else critical,
        text=None if text is None else read_text(text, setting="text"),
    )
    print(table(result))
    content = json.dumps(result.to_dict(), indent=2) + "\n"
    write_output(json_output, lambda part: part.write_text(content, encoding="utf-8"), overwrite=overwrite)
    write_output(picture, lambda part: draw(result, part), overwrite=overwrite)
