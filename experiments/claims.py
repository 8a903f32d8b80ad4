"""Claims about losses, and what the runs say of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments.finished import Finished
from experiments.statistics import Estimate, estimate, higher_is_better, paired_difference
from experiments.suites import Suite

CLAIMS = Path(__file__).with_name("claims.yaml")
QUICK_CLAIMS = Path(__file__).with_name("quick_claims.yaml")
#: In place of the run claimed to be worse.
ZERO = "zero"

Verdict = Literal["reproduced", "not reproduced", "holds", "does not hold", "undecided", "not run"]

_FEWEST_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That one run is better than another, or several than others.

    Attributes:
        claim: In words.
        source: Whose it is, with the published figures; ``ours`` first where it is not the paper's.
        metric: Tag of the value that is compared.
        comparisons: Pairs of runs, ``suite/run``: the one claimed to be better, and the one claimed to be worse, or
            ``zero``.
        at: Which value of a run counts: the ``last``, or the ``first`` of its history.
        apart: The intervals of the two runs themselves must not overlap, either.
    """

    claim: str
    source: str
    metric: str
    comparisons: tuple[tuple[str, str], ...]
    at: Literal["first", "last"] = "last"
    apart: bool = False

    @property
    def higher_is_better(self) -> bool:
        """Whether the better of two runs has the higher metric."""
        return higher_is_better(self.metric)

    @property
    def ours(self) -> bool:
        """Not the paper's: it holds or not, but cannot be reproduced."""
        return self.source.startswith("ours")


def load_claims(path: Path = CLAIMS) -> list[Claim]:
    """The claims of a YAML file.

    Raises:
        ValueError: If an entry is not a claim; it is named.
    """
    entries = yaml.safe_load(path.read_text())
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of claims, got {type(entries).__name__}")
    return [_parse(entry, f"{path}, claim {number}") for number, entry in enumerate(entries, start=1)]


def _parse(entry: Any, where: str) -> Claim:
    names = {field.name for field in fields(Claim)}
    needed = {field.name for field in fields(Claim) if field.default is MISSING}
    if not isinstance(entry, dict) or not needed <= entry.keys() <= names:
        given = sorted(entry) if isinstance(entry, dict) else entry
        raise ValueError(f"{where} must have {sorted(needed)} and may have {sorted(names - needed)}, got {given}")
    if entry.get("at", "last") not in ("first", "last"):
        raise ValueError(f"{where}: at must be first or last, got {entry['at']!r}")
    if not isinstance(entry.get("apart", False), bool):
        raise ValueError(f"{where}: apart must be true or false, got {entry['apart']!r}")
    pairs = entry["comparisons"]
    if not (isinstance(pairs, list) and pairs and all(map(_is_comparison, pairs))):
        raise ValueError(f"{where}: comparisons must be a list of pairs [suite/run, suite/run], got {pairs!r}")
    return Claim(**{**entry, "comparisons": tuple((better, worse) for better, worse in pairs)})


def _is_comparison(pair: Any) -> bool:
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
        return False
    return pair[0].count("/") == 1 and (pair[1] == ZERO or pair[1].count("/") == 1)


def unknown_runs(claims: Sequence[Claim], suites: Mapping[str, Suite]) -> list[str]:
    """The runs, ``suite/run``, that claims name and no suite has."""
    named = {run for claim in claims for comparison in claim.comparisons for run in comparison} - {ZERO}
    return sorted(named - {f"{suite.name}/{run}" for suite in suites.values() for run in suite.runs})


def differences(claim: Claim, finished: Finished) -> list[Estimate | None]:
    """For every comparison the metric of the run claimed to be better less that of the other, paired by seed."""
    return [paired_difference(*_values(comparison, claim, finished)) for comparison in claim.comparisons]


def _values(comparison: tuple[str, str], claim: Claim, finished: Finished) -> tuple[dict[int, float], dict[int, float]]:
    """By seed, of the one claimed to be better and of the other."""
    first, second = (_of_run(name, claim, finished) for name in comparison)
    return first, dict.fromkeys(first, 0.0) if comparison[1] == ZERO else second


def _of_run(name: str, claim: Claim, finished: Finished) -> dict[int, float]:
    if name == ZERO:
        return {}
    suite, run = name.split("/")
    if claim.at == "last":
        return finished.metric(suite, run, claim.metric)
    return {seed: curve[0][1] for seed, curve in finished.curves(suite, run, claim.metric).items()}


def verdict(claim: Claim, finished: Finished) -> Verdict:
    """What the runs say of the claim.

    It is reproduced (ours: holds) where every 95% interval of the differences lies wholly on the claimed side (and,
    where it has to be ``apart``, the runs' own intervals do not overlap), not reproduced (ours: does not hold) where
    one lies wholly on the other side, and else undecided; not run where a comparison has fewer than three seeds.
    """
    found = differences(claim, finished)
    if any(difference is None or difference.n < _FEWEST_SEEDS for difference in found):
        return "not run"
    claimed = 1 if claim.higher_is_better else -1
    sides = [difference.side * claimed for difference in found if difference is not None]
    if any(side < 0 for side in sides):
        return "does not hold" if claim.ours else "not reproduced"
    if any(side == 0 for side in sides) or (
        claim.apart and any(_overlap(pair, claim, finished) for pair in claim.comparisons)
    ):
        return "undecided"
    return "holds" if claim.ours else "reproduced"


def _overlap(comparison: tuple[str, str], claim: Claim, finished: Finished) -> bool:
    intervals = [estimate([*values.values()]).interval for values in _values(comparison, claim, finished)]
    (low, high), (other_low, other_high) = (interval for interval in intervals if interval is not None)
    return low <= other_high and other_low <= high


def broken_claims(claims: Sequence[Claim], finished: Finished) -> list[str]:
    """The claims that do not hold for each seed by itself, with the values; for too few seeds for an interval."""
    broken = []
    for claim in claims:
        for better, worse in claim.comparisons:
            first, second = _values((better, worse), claim, finished)
            sign = 1 if claim.higher_is_better else -1
            if not first or first.keys() != second.keys():
                broken.append(f"{claim.claim}: {better} and {worse} are not finished for the same seeds")
            elif any(sign * first[seed] <= sign * second[seed] for seed in first):
                broken.append(f"{claim.claim}: {claim.metric} of {better} is {first}, of {worse} {second} (by seed)")
    return broken
