"""A run under one seed: what it needs, what it is known by, how it is carried out."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from experiments.finished import FinishedRun, Key
from experiments.prepare import content_fingerprint, prepare, write_lines, write_pruned
from experiments.suites import RUN_REFERENCE, Run, Suite

#: The modules beside this one that decide what a run learns, and what is measured of it.
_MAKE_RESULTS = ("held_out", "jobs", "prepare", "problems", "tokenizers")


@dataclass(frozen=True)
class Job:
    """One run under one seed, ready to go.

    Attributes:
        settings: Fingerprint of its configuration, of the content of the files that this names, and of the settings of
            the jobs whose models it reads. Code is no part of it: a result says by which it was made.
        needs: Jobs that have to be done first.
        run_folder: Where it writes; another configuration has another folder.
        config: Of ``python -m xtoken_pl fit``.
    """

    key: Key
    settings: str
    needs: tuple[Key, ...]
    run_folder: Path
    config: dict[str, Any]
    at_least: dict[str, float]

    def shortfall(self, metrics: Mapping[str, float]) -> str:
        """What the metrics do not reach, with the values; empty where they reach all that they have to."""
        missed = [
            f"{tag} must reach {least}, got {metrics[tag]:.3f}"
            for tag, least in self.at_least.items()
            if not metrics[tag] >= least
        ]
        return ", ".join(missed)


def make_jobs(suites: Mapping[str, Suite], folder: Path, others: Mapping[str, Suite] | None = None) -> dict[Key, Job]:
    """The jobs of all runs and seeds of these suites, each behind the jobs that it needs; writes what they read.

    Args:
        suites: What to run.
        folder: Where to.
        others: Suites from which only what the first ones need is run.

    Raises:
        ValueError: If a run refers to one that is in none of the suites.
    """
    prepare(folder)
    known = {**(others or {}), **suites}
    runs = {f"{suite.name}/{run.name}": run for suite in known.values() for run in suite.runs.values()}
    jobs: dict[Key, Job] = {}
    lines_file = cache(lambda lines, seed: write_lines(lines, seed, folder))  # the same for many runs
    fingerprint = cache(content_fingerprint)  # teachers of the real text are large
    pruned = cache(lambda: write_pruned(folder))

    def make(run: Run, seed: int) -> Job:
        key = (run.suite, run.name, seed)
        if key in jobs:
            return jobs[key]
        needed: dict[str, Job] = {}
        for reference in RUN_REFERENCE.findall(json.dumps(run.config)):
            if reference not in runs:
                raise ValueError(
                    f"{run.suite}/{run.name} needs {reference}, which is in none of the suites; add its suite"
                )
            other = runs[reference]
            if seed not in other.seeds and len(other.seeds) != 1:
                raise ValueError(
                    f"{run.suite}/{run.name} needs {reference} with seed {seed}, which is not one of its seeds"
                )
            needed[reference] = make(other, seed if seed in other.seeds else other.seeds[0])
        values = {"${folder}": str(folder)}
        if "${pruned}" in json.dumps(run.config):
            values["${pruned}"] = str(pruned())
        if run.lines:
            values["${lines}"] = str(lines_file(run.lines, seed))
            values |= {f"${{lines/{part.task}}}": str(lines_file((part,), seed)) for part in run.lines}
        values |= {f"${{run:{reference}}}": str(job.run_folder) for reference, job in needed.items()}
        settings = _settings(run, seed, values, {name: job.settings for name, job in needed.items()}, fingerprint)
        run_folder = folder / run.suite / run.name / f"seed_{seed}-{settings[:8]}"
        config = substitute(run.config, {**values, "${run_folder}": str(run_folder)}) | {"seed_everything": seed}
        if left := re.findall(r"\$\{[^}]*\}", json.dumps(config)):
            raise ValueError(f"{run.suite}/{run.name} has the placeholder {left[0]}, which nothing fills in")
        needs = tuple(job.key for job in needed.values())
        jobs[key] = Job(key, settings, needs, run_folder, config, run.at_least)
        return jobs[key]

    for suite in suites.values():
        # Seed by seed: where time ends early, fewer seeds of all runs are there, and not fewer runs.
        for seed in sorted({seed for run in suite.runs.values() for seed in run.seeds}):
            for run in suite.runs.values():
                if seed in run.seeds:
                    make(run, seed)
    return jobs


def carry_out(job: Job) -> FinishedRun:
    """Trains through the package's command line; returns the result.

    What a run that was cut off left behind is removed first.

    Raises:
        ValueError: If a metric ends as no finite number, or below what the job has to reach.
    """
    from xtoken_pl.cli import main  # takes seconds, and only who trains needs it

    if job.run_folder.exists():
        shutil.rmtree(job.run_folder)
    job.run_folder.mkdir(parents=True)
    path = job.run_folder / "config.yaml"
    path.write_text(yaml.safe_dump(job.config, sort_keys=False))
    code = code_fingerprint()  # of what is loaded now: files may change while it trains
    start = time.perf_counter()
    with output_to(job.run_folder / "output.txt"):
        try:
            main(["fit", "--config", str(path)])
        except BaseException:
            traceback.print_exc()  # who is told of the error is told to look here
            raise
    history = read_history(job.run_folder / "log" / "metrics.csv")
    metrics = {tag: points[-1][1] for tag, points in history.items()}
    if unknown := [tag for tag, value in metrics.items() if not math.isfinite(value)]:
        raise ValueError(f"metrics must be finite, got {metrics[unknown[0]]} for {unknown[0]!r}; train it otherwise")
    if shortfall := job.shortfall(metrics):
        raise ValueError(f"{shortfall}; train it longer")
    return FinishedRun(
        *job.key,
        settings=job.settings,
        code=code,
        metrics=metrics,
        history={tag: points for tag, points in history.items() if not tag.startswith(("train/", "lr"))},
        seconds=round(time.perf_counter() - start, 1),
    )


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Sends all that this process writes to a file, what libraries write to the streams that they found included."""
    kept = [os.dup(stream) for stream in (1, 2)]
    with path.open("w") as file:
        try:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, before in zip((1, 2), kept, strict=True):
                os.dup2(before, stream)
                os.close(before)


def read_history(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> [(optimizer steps done, value)] of a file of Lightning's CSVLogger."""
    history: dict[str, list[tuple[int, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            step = int(row["step"]) + 1
            for tag, value in row.items():
                if value and tag not in ("step", "epoch"):
                    history.setdefault(tag, []).append((step, float(value)))
    return history


def substitute(value: Any, values: dict[str, str]) -> Any:
    """Fills in placeholders in all strings of a configuration."""
    return _map_strings(value, lambda text: _replace(text, values))


def _replace(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


@cache
def code_fingerprint() -> str:
    """Of all code that a result may depend on."""
    root = Path(__file__).parents[1]
    own = [root / "experiments" / f"{name}.py" for name in _MAKE_RESULTS]
    used = [path for part in ("xtoken_pl", "callbacks") for path in (root / part).rglob("*.py")]
    digest = hashlib.sha256()
    for file in sorted({*own, *used}):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _settings(
    run: Run, seed: int, values: dict[str, str], needed: dict[str, str], fingerprint: Callable[[Path], str]
) -> str:
    """A fingerprint that does not depend on where the files lie."""

    def known_by_content(text: str) -> str:
        for reference, settings in needed.items():
            text = text.replace(f"${{run:{reference}}}", settings)
        path = _replace(text, values)
        return fingerprint(Path(path)) if "/" in path and Path(path).exists() else text

    described = {"seed": seed, "config": _map_strings(run.config, known_by_content)}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
