"""Results as JSON and as a Markdown table."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.gpu_check.parts import PartResult
from benchmarks.gpu_check.setting import Setting

_PACKAGES = ("torch", "transformers", "lightning", "tokenizers", "peft", "bitsandbytes")
JSON_FILE, TABLE_FILE = "results.json", "results.md"


def new_folder(root: Path) -> Path:
    """Creates the first of ``ROOT/1``, ``ROOT/2``, ... that does not exist."""
    number = 1
    while True:
        try:
            (folder := root / str(number)).mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def write_results(folder: Path, setting: Setting, results: Sequence[PartResult], seconds: float) -> None:
    """Writes both files, so far as parts have run; those of an earlier call for the same run are replaced.

    Args:
        folder: Directory of the run.
        setting: Where it ran.
        results: Results of the parts.
        seconds: Time since the start.
    """
    machine = describe_machine(setting)
    content = {
        "machine": machine,
        "is_full": setting.is_full,
        "seconds": round(seconds, 1),
        "parts": [result.to_dict() for result in results],
    }
    (folder / JSON_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / TABLE_FILE).write_text(markdown(machine, setting, results, seconds), encoding="utf-8")


def describe_machine(setting: Setting) -> dict[str, str]:
    """Names the device, the system and the versions of the packages that are installed."""
    device = platform.processor() or platform.machine()
    if setting.on_gpu:
        found = torch.cuda.get_device_properties(setting.device)
        device = f"{found.name}, {found.total_memory / 1e9:.1f} GB, CUDA {torch.version.cuda}"
    packages: list[str] = []
    for name in _PACKAGES:
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return {"device": device, "system": system, "packages": ", ".join(packages)}


def markdown(machine: dict[str, str], setting: Setting, results: Sequence[PartResult], seconds: float) -> str:
    """The results as Markdown: a table of the parts, and one of the figures of each part."""
    size = "" if setting.is_full else " In miniature: the figures say that the check works, and nothing about speed."
    lines = [
        "# GPU check",
        "",
        f"{machine['device']}; {machine['system']}; {machine['packages']}. {seconds:.0f} s.{size}",
        "",
        *_table(["part", "status", "seconds"], [[r.part.title, r.status, f"{r.seconds:.0f}"] for r in results]),
    ]
    for result in results:
        if result.figures:
            rows = [figure.row() for figure in result.figures]
            lines += ["", f"## {result.part.title}", "", *_table(["what", "measured", "target", "", "from"], rows)]
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
