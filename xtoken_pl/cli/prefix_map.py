"""``python -m xtoken_pl prefix_map``: the prefix map between two tokenizers, as a file."""

from __future__ import annotations

from pathlib import Path

from xtoken_pl.cli.usage import run_function
from xtoken_pl.prefix_map import build_prefix_map
from xtoken_pl.tokenization import load_tokenizer
from xtoken_pl.utilities.files import check_target


def run(arguments: list[str]) -> None:
    """Runs the verb."""
    run_function(prefix_map, arguments)


def prefix_map(student: str, teacher: str, output: str, *, overwrite: bool = False) -> None:
    """Compile the prefix map between two tokenizers, which BytePrefixKL, BPM and ESCD read, and store it.

    Args:
        student: Directory or hub id of the student's tokenizer.
        teacher: Directory or hub id of the teacher's tokenizer.
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
