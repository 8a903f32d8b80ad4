"""The configurations that are shipped, and the commands in their headers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
#: Laid over the trainer of a recipe: two small steps on the CPU.
SMALL_TRAINER = {
    "accelerator": "cpu",
    "max_steps": 2,
    "accumulate_grad_batches": 1,
    "precision": "32-true",
    "val_check_interval": 2,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def command_of(config: Path) -> list[str]:
    """The command in a configuration's header, without `python -m xtoken_pl`."""
    found = re.search(r"^# Command: +python -m xtoken_pl (.*?)(?: {2,}.*)?$", config.read_text(), flags=re.MULTILINE)
    assert found, f"{config} has no line '# Command:  python -m xtoken_pl ...'"
    return shlex.split(found[1])
