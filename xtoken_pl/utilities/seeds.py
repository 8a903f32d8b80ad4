"""The seed of a run."""

from __future__ import annotations

import os


def run_seed() -> int:
    """Returns the number that ``seed_everything`` was given, 0 without it; the same on all processes."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
