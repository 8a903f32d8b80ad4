"""Runs all benchmarks, prints their table, and compares it with the stored one: ``python -m benchmarks [--store]``."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.measure import Figure

NAMES = (
    "losses",
    "byte_prefix",
    "lookahead",
    "own_work",
    "memory",
    "text",
    "loader",
    "quickstart_step",
    "on_policy",
    "top_k",
    "top_k_steps",
    "cache",
    "accumulation",
    "domains",
    "served",
)
#: Benchmarks that run without a server of their own.
_ALONE = tuple(name for name in NAMES if name != "served")
_FOLDER = Path(__file__).parent
_RESULTS = _FOLDER / "results.json"
_PACKAGES = ("torch", "lightning", "transformers", "numpy")


def main() -> None:
    """Every benchmark runs in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=_ALONE, help="which benchmarks")
    parser.add_argument("--store", action="store_true", help="write results.json and the table of README.md")
    arguments = parser.parse_args()
    stored = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else {"figures": {}}
    figures: dict[str, list[Figure]] = {}
    start = time.perf_counter()
    for name in arguments.only:
        print(f"\n{name}", flush=True)
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--json", file.name], check=True)
            figures[name] = [Figure(**values) for values in json.loads(Path(file.name).read_text())]
    taken = time.perf_counter() - start
    old = {values["what"]: values["value"] for group in stored["figures"].values() for values in group}
    print(f"\n{taken / 60:.1f} min\n")
    print(table([figure for group in figures.values() for figure in group], old))
    if arguments.store:
        _store({**stored["figures"], **{n: [vars(f) for f in group] for n, group in figures.items()}})


def table(figures: Sequence[Figure], old: dict[str, float] | None = None) -> str:
    """A Markdown table; with ``old`` also what was stored."""
    rows = [[*figure.row(), *([] if old is None else [_stored(figure, old)])] for figure in figures]
    header = ["what", "measured", "target", "", "from", *([] if old is None else ["stored"])]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _stored(figure: Figure, old: dict[str, float]) -> str:
    return f"{old[figure.what]:.3g} {figure.unit}" if figure.what in old else ""


def _store(groups: dict[str, list[dict[str, object]]]) -> None:
    machine = {
        "cpu": processor(),
        "cores": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {name: version(name) for name in _PACKAGES},
    }
    _RESULTS.write_text(json.dumps({"machine": machine, "figures": groups}, indent=1) + "\n")
    readme = _FOLDER / "README.md"
    begin, end = "<!-- table -->\n", "<!-- end of table -->"
    before, rest = readme.read_text().split(begin)
    figures = [Figure(**values) for name in NAMES for values in groups.get(name, [])]  # type: ignore[arg-type]
    packages = ", ".join(f"{name} {version_}" for name, version_ in machine["packages"].items())  # type: ignore[attr-defined]
    described = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {packages}\n\n"
    readme.write_text(before + begin + described + table(figures) + "\n" + end + rest.split(end)[1])


def processor() -> str:
    """Name of the machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
