"""``python -m xtoken_pl project``: the projection matrix W between two tokenizers, as a file."""

from __future__ import annotations

import logging
from pathlib import Path

from xtoken_pl.cli.usage import run_function
from xtoken_pl.projection import ProjectionParameters, build_projection
from xtoken_pl.tokenization import load_tokenizer
from xtoken_pl.utilities.files import check_target

logger = logging.getLogger(__name__)


def run(arguments: list[str]) -> None:
    """Runs the verb."""
    run_function(project, arguments)


def project(
    student: str, teacher: str, output: str, *, beta: float = 0.9, gamma: float = 0.1, overwrite: bool = False
) -> None:
    """Build the projection matrix W between two tokenizers and store it.

    Args:
        student: Directory or hub id of the student's tokenizer.
        teacher: Directory or hub id of the teacher's tokenizer.
        output: The safetensors file to write.
        beta: Weight of the first teacher token that writes a student token, before the row is normalized, which
            cancels it.
        gamma: Factor from one teacher token to the next.
        overwrite: Replace a file that exists.
    """
    parameters = ProjectionParameters(beta=beta, gamma=gamma)
    check_target(Path(output), kind="file", overwrite=overwrite)
    if beta != ProjectionParameters.beta:
        logger.warning("beta=%s has no effect, since rows of W are normalized; gamma sets how fast weights decay", beta)
    projection = build_projection(load_tokenizer(student), load_tokenizer(teacher), parameters)
    projection.save(output, overwrite=overwrite)
    counts = projection.counts
    print(f"W [{projection.num_student:,}, {projection.num_teacher:,}] of {student} -> {teacher}")
    for label, count in (("exact", counts.exact), ("multi-token", counts.multi_token), ("zero", counts.zero)):
        print(f"  {label:<12}{count:>9,} rows  {count / projection.num_student:7.2%}")
    print(f"written to {output}")
