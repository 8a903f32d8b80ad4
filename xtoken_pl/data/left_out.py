"""Counts the conversations that a chat template cannot render, and keeps the first reason."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: A unit of work: see :func:`xtoken_pl.data.work_units.work_units`.
Unit = tuple[int, int, int, int]
# Lines that are appended at once stay whole, whichever process writes them.
_LONGEST_REASON = 1000


@dataclass
class LeftOut:
    """Number of conversations that are left out, and the reason of the first."""

    count: int = 0
    reason: str = ""
    _said: int = field(default=0, repr=False)

    def add(self, reasons: Sequence[str]) -> bool:
        """Adds conversations; returns whether their number has doubled since it was last said."""
        self.count += len(reasons)
        self.reason = self.reason or next(iter(reasons), "")
        if not reasons or self.count < 2 * self._said:
            return False
        self._said = self.count
        return True


class LeftOutFile:
    """File beside stored windows that keeps what was left out when they were made, for runs that find them made.

    Args:
        path: The file, which exists if anything was left out.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def append(self, unit: Unit, reasons: Sequence[str]) -> None:
        """Notes what was left out of one unit of work; several processes may append."""
        line = {"unit": unit, "count": len(reasons), "reason": reasons[0][:_LONGEST_REASON]}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def total(self, units: Iterable[Unit]) -> LeftOut:
        """Adds up some units of work, each once: an interrupted run may have noted units that were made again."""
        if not self.path.exists():
            return LeftOut()
        lines = map(json.loads, self.path.read_text().splitlines())
        noted = {tuple(line["unit"]): line for line in lines}
        own = [noted[unit] for unit in sorted(noted.keys() & set(units))]
        return LeftOut(sum(line["count"] for line in own), own[0]["reason"] if own else "")
