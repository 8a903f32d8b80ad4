"""Runs one part, and writes its figures as lines of JSON: ``python -m benchmarks.gpu_check.one_part NAME``."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_check.parts import PARTS
from benchmarks.gpu_check.setting import Figures, NotRunError, Setting

_LONGEST_REASON = 300


def main() -> None:
    """Runs the part of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=[part.name for part in PARTS])
    parser.add_argument("--lines", type=Path, help="write the figures and the status to this file")
    parser.add_argument("--miniature", action="store_true", help="run in miniature on a GPU, too")
    parser.add_argument("--packages", help="directory of packages that are not installed")
    arguments = parser.parse_args()
    if arguments.packages is not None:
        sys.path.append(arguments.packages)
    figures: Figures = import_module(f"benchmarks.gpu_check.{arguments.part}").figures
    print(run(figures, Setting.found(is_miniature=arguments.miniature), arguments.lines))


def run(figures: Figures, setting: Setting, lines: Path | None) -> str:
    """Takes the figures one after the other, prints and writes each, and returns the status.

    Args:
        figures: Function of a part.
        setting: Where it runs.
        lines: File that the figures and the status are added to, line by line; None for none.
    """
    status = "done"
    try:
        for figure in figures(setting):
            print(" | ".join(cell for cell in figure.row() if cell), flush=True)
            _add_line(lines, asdict(figure))
    except NotRunError as reason:
        status = f"not run: {reason}"
    except Exception as error:  # a part that fails is a result, too
        traceback.print_exc()
        status = f"failed: {' '.join(f'{type(error).__name__}: {error}'.split())[:_LONGEST_REASON]}"
    _add_line(lines, {"status": status})
    return status


def _add_line(lines: Path | None, content: object) -> None:
    if lines is not None:
        with lines.open("a") as file:
            print(json.dumps(content), file=file)


if __name__ == "__main__":
    main()
