"""Checks and measures the package on a GPU; without one, it runs itself in miniature on the CPU.

python -m benchmarks.gpu_check [--only PART ...] [--wheels FOLDER] [--folder FOLDER] [--miniature]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_check.parts import PARTS, Part, PartResult, run_part
from benchmarks.gpu_check.report import TABLE_FILE, describe_machine, markdown, new_folder, write_results
from benchmarks.gpu_check.setting import Setting

#: Environment variable with the folder of wheels.
WHEELS = "XTOKEN_PL_WHEELS"
#: Seconds that all parts take at most on a GPU; starting Python and ending the last part come on top of them.
LIMIT = 460.0


def main() -> None:
    """Runs the parts one after the other, each in a process of its own; exits with 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="which parts")
    parser.add_argument("--folder", type=Path, help="new directory of the results; runs/gpu-check/NUMBER by default")
    parser.add_argument(
        "--wheels",
        type=Path,
        default=os.environ.get(WHEELS) or None,
        help=f"directory of wheels of packages that are not installed; {WHEELS} by default",
    )
    parser.add_argument("--miniature", action="store_true", help="run in miniature on a GPU, too")
    arguments = parser.parse_args()
    folder = arguments.folder
    if folder is None:
        folder = new_folder(Path("runs/gpu-check"))
    elif folder.exists():
        parser.error(f"the results are written to a new directory, but {folder} exists; name another one")
    else:
        folder.mkdir(parents=True)
    setting = Setting.found(is_miniature=arguments.miniature)
    parts = [part for part in PARTS if part.name in arguments.only]
    options = ["--miniature"] if arguments.miniature else []
    results: list[PartResult] = []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.wheels is not None:
            unpack(arguments.wheels, Path(scratch) / "packages")
            options += ["--packages", str(Path(scratch) / "packages")]
        for place, part in enumerate(parts):
            print(f"\n{part.title}", flush=True)
            left = LIMIT - (time.perf_counter() - begin)
            limit = time_limit(part, parts[place + 1 :], left) if setting.is_full else None
            results.append(run_part(part, Path(scratch) / f"{part.name}.jsonl", options, limit))
            write_results(folder, setting, results, time.perf_counter() - begin)
    print("\n" + markdown(describe_machine(setting), setting, results, time.perf_counter() - begin))
    print(f"written to {folder / TABLE_FILE}")
    sys.exit(int(any(result.is_failed for result in results)))


def time_limit(part: Part, later: Sequence[Part], left: float) -> float:
    """Seconds that a part may take: all the time that is left, except what is set aside for later parts."""
    return min(left, max(part.seconds, left - sum(other.seconds for other in later)))


def unpack(wheels: Path, folder: Path) -> None:
    """Unpacks all wheels of a directory into ``folder``.

    Raises:
        SystemExit: If there are none.
    """
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise SystemExit(f"there are no wheels (*.whl) in {wheels}; check --wheels and {WHEELS}")
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


if __name__ == "__main__":
    main()
