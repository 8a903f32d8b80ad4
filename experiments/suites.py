"""What is run: suites of runs that differ in their configuration, each with several seeds.

A suite is a file in ``experiments/suites``. Its configuration is that of ``python -m xtoken_pl fit``, put together from
the files it names and from what a run adds, by the rules of several ``--config``. In it

- ``${folder}`` is the folder of all experiments, ``${run_folder}`` that of this run;
- ``${lines}`` is a file with the lines that ``lines`` describes, drawn under this seed, and ``${lines/TASK}`` one with
  those of a task alone;
- ``${pruned}`` is the folder of SmolLM2-135M without a third of its layers;
- ``${run:SUITE/RUN}`` is the folder of another run, which is run first: the one of the same seed, or its only one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from experiments.problems import Task
from xtoken_pl.cli.config_files import merge

ROOT = Path(__file__).parent
#: The suites of `make evidence`, in their order.
EVIDENCE = ("losses", "losses_on_policy", "losses_letters", "losses_real", "losses_spans")
#: Those of `make evidence-all` besides, which the report has from its recorded results otherwise; stories in words take
#: hours more.
RECORDED = (
    *("losses_search", "losses_pretrained", "search", "addition", "numerals", "real", "conditions", "complementary"),
    *("first_digit", "warm_up", "on_policy_search", "on_policy", "on_policy_complementary", "ceiling"),
)
RUN_REFERENCE = re.compile(r"\$\{run:([^}]+)\}")


class Lines(NamedTuple):
    """Lines to learn from: of a task, so many, of which a share has a random answer."""

    task: Task
    number: int
    random_share: float


@dataclass(frozen=True)
class Run:
    """One configuration, run once for every seed.

    Attributes:
        title: In tables: the loss, mostly.
        teacher: In tables.
        config: Of ``fit``, with placeholders.
        lines: What ``${lines}`` holds.
        baseline: The run of the suite that it is compared with; empty for none.
        at_least: Tag -> least final value: what others learn from has to be good at it.
        also: Titles of other losses that are the same under this teacher, and are not run again.
    """

    suite: str
    name: str
    title: str
    teacher: str
    seeds: tuple[int, ...]
    config: dict[str, Any]
    lines: tuple[Lines, ...]
    baseline: str
    at_least: dict[str, float]
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """Runs that are compared.

    Attributes:
        metrics: Tag -> title of its column; the first one decides.
    """

    name: str
    title: str
    metrics: dict[str, str]
    runs: dict[str, Run]


def load_suites(names: Sequence[str] | None = None) -> dict[str, Suite]:
    """The suites of these names, in their order, or all.

    Raises:
        ValueError: For a name without a file, or a file with a mistake.
    """
    paths = {path.stem: path for path in sorted((ROOT / "suites").glob("*.yaml"))}
    if unknown := set(names or ()) - set(paths):
        raise ValueError(f"a suite must be one of {', '.join(paths)}, got {', '.join(sorted(unknown))}")
    return {name: _load(paths[name]) for name in names or paths}


def _load(path: Path) -> Suite:
    content = read_yaml(path)
    _check_keys(content, {"title", "seeds", "config", "lines", "metrics", "baseline", "runs", "variants"}, str(path))
    base: dict[str, Any] = {}
    for name in content.get("config", []):
        base = merge(base, read_yaml(ROOT.parent / name))
    runs = {}
    for name, given in _with_variants(content).items():
        known = {"title", "teacher", "seeds", "lines", "config", "configs", "baseline", "at_least", "also"}
        _check_keys(given, known, f"{path}: {name}")
        config = base
        for extra in given.get("configs", []):
            config = merge(config, read_yaml(ROOT.parent / extra))
        runs[name] = Run(
            suite=path.stem,
            name=name,
            title=given.get("title", name),
            teacher=given.get("teacher", ""),
            seeds=tuple(given.get("seeds", content["seeds"])),
            config=merge(config, given.get("config", {})),
            lines=tuple(Lines(**lines) for lines in given.get("lines", content.get("lines", []))),
            baseline=given.get("baseline", content.get("baseline", "")),
            at_least=given.get("at_least", {}),
            also=tuple(given.get("also", [])),
        )
    for run in runs.values():
        if run.baseline and run.baseline not in runs:
            raise ValueError(f"{path}: the baseline of {run.name} must be one of its runs, got {run.baseline!r}")
    return Suite(path.stem, content["title"], content["metrics"], runs)


def _with_variants(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The runs of a suite; where it has variants, every run in each of them: ``{NAME: configuration}``."""
    runs = {name: given or {} for name, given in content["runs"].items()}
    if "variants" not in content:
        return runs
    return {
        f"{name}_{variant}": {
            **given,
            "title": f"{given.get('title', name)}, {variant.replace('_', ' ')}",
            "config": merge(given.get("config", {}), change),
        }
        for name, given in runs.items()
        for variant, change in content["variants"].items()
    }


def _check_keys(content: dict[str, Any], known: set[str], where: str) -> None:
    if unknown := content.keys() - known:
        raise ValueError(f"{where} has no setting {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file."""
    content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(content).__name__}")
    return content
