"""The finished runs of a folder, read from its ``results.jsonl``."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"

Key = tuple[str, str, int]  # suite, run, seed
Curve = list[tuple[int, float]]  # (step, value), by step


@dataclass(frozen=True)
class FinishedRun:
    """One line of the results.

    Attributes:
        settings: Fingerprint of the configuration.
        code: Fingerprint of the code that made it.
        metrics: Final values by tag.
        history: Values over steps by tag.
        seconds: What it took.
    """

    suite: str
    run: str
    seed: int
    settings: str
    code: str
    metrics: dict[str, float]
    history: dict[str, Curve]
    seconds: float

    @property
    def key(self) -> Key:
        """What it is a run of."""
        return self.suite, self.run, self.seed


@dataclass(frozen=True)
class Finished:
    """Finished runs, at most one of each suite, run and seed."""

    runs: Mapping[Key, FinishedRun]

    def of(self, suite: str, run: str) -> dict[int, FinishedRun]:
        """The finished seeds of a run, in order."""
        return {key[2]: self.runs[key] for key in sorted(self.runs) if key[:2] == (suite, run)}

    def metric(self, suite: str, run: str, tag: str) -> dict[int, float]:
        """Final values by seed; seeds that did not log the tag are absent."""
        return {seed: done.metrics[tag] for seed, done in self.of(suite, run).items() if tag in done.metrics}

    def as_lines(self) -> str:
        """All of them as they are read, in order."""
        return "".join(json.dumps(asdict(self.runs[key])) + "\n" for key in sorted(self.runs))

    def curves(self, suite: str, run: str, tag: str) -> dict[int, Curve]:
        """Values over steps by seed; seeds that did not log the tag are absent."""
        return {seed: done.history[tag] for seed, done in self.of(suite, run).items() if tag in done.history}


def read_finished(
    folder: Path, wanted: Mapping[Key, str] | None = None, recorded: Iterable[FinishedRun] = ()
) -> Finished:
    """Reads the results; of several lines for the same suite, run and seed, the last wanted one counts.

    A warning names the runs that are wanted and there in other settings only.

    Args:
        folder: Where ``results.jsonl`` lies.
        wanted: The settings of every run that is to count, by suite, run and seed; None takes all runs and settings.
        recorded: Results that count where the folder has none.

    Raises:
        ValueError: If a line is damaged, or a metric is no finite number.
    """
    lines = [*recorded, *read_lines(folder)]
    if wanted is None:
        return Finished({done.key: done for done in lines})
    runs = {done.key: done for done in lines if wanted.get(done.key) == done.settings}
    if others := sorted({"/".join(map(str, done.key)) for done in lines if done.key in wanted.keys() - runs.keys()}):
        warnings.warn(
            f"{len(others)} of the wanted runs in {folder} are of other settings and do not count: "
            f"{', '.join(others[:5])}{', ...' if len(others) > 5 else ''}; run them again",
            stacklevel=2,
        )
    return Finished(runs)


def read_lines(folder: Path) -> list[FinishedRun]:
    """All lines of the results; none where there is no file.

    Raises:
        ValueError: As above.
    """
    path = folder / RESULTS
    lines = path.read_text().splitlines() if path.is_file() else []
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def drop_cut_line(folder: Path) -> None:
    """Removes the part of a line that was left by a process that was killed while it wrote a result."""
    path = folder / RESULTS
    content = path.read_bytes() if path.is_file() else b""
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _parse(line: str, where: str) -> FinishedRun:
    way_out = "delete the line, and run `make evidence` again"
    try:
        values: dict[str, Any] = json.loads(line)
        done = FinishedRun(**{field.name: values[field.name] for field in fields(FinishedRun)})
        history = {
            tag: sorted((int(step), float(value)) for step, value in curve) for tag, curve in done.history.items()
        }
        metrics = {tag: float(value) for tag, value in done.metrics.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is no finished run ({type(error).__name__}: {error}); {way_out}") from error
    unknown = [tag for tag, value in metrics.items() if not math.isfinite(value)]
    if unknown:
        raise ValueError(f"{where}: metrics must be finite, got {metrics[unknown[0]]} for {unknown[0]!r}; {way_out}")
    return FinishedRun(
        done.suite, done.run, int(done.seed), done.settings, done.code, metrics, history, float(done.seconds)
    )
