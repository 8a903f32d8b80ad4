"""The comparison as Markdown, from the stored results alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.runs import LEFT_OUT, RUNS

_COLUMNS = (
    "run",
    "s per step",
    "against ours",
    "CPU s per step",
    "peak memory",
    "tokens lost",
    "tokens misaligned",
    "predictions of other text",
    "bits per byte",
)


def render(results: Mapping[str, Any]) -> str:
    """Returns the tables of runs, of scripts, and of the packages that are not run.

    Args:
        results: ``settings``, ``runs`` and ``scripts``, as :mod:`benchmarks.peers` writes them.
    """
    settings = results["settings"]
    sides = {"ours": "this package", "trl": "TRL"}
    packages = "; ".join(
        f"{sides[side]} with " + ", ".join(f"{name} {number}" for name, number in versions.items())
        for side, versions in settings["packages"].items()
    )
    threads = settings["threads"]
    parts = [
        f"{settings['machine']}, {threads} thread{'s' * (threads > 1)}; {packages}. Times and memory: "
        f"{settings['rounds']} rounds of {settings['timed_steps']} steps after {settings['warm_up']}; bits per byte "
        f"after {settings['steps']} steps of {settings['tokens_per_step']:.0f} student tokens on average.",
        _table([_COLUMNS, *(_row(name, results) for name in RUNS if name in results["runs"])]),
    ]
    if results["scripts"]:
        header = ("sentences of many scripts", "tokens lost", "tokens misaligned", "predictions of other text")
        rows = [
            (label, *_alignment(counts))
            for name, pair in results["scripts"].items()
            for label, counts in ((RUNS[name].label, pair["theirs"]), ("this package", pair["ours"]))
        ]
        parts.append(_table([header, *dict.fromkeys(rows)]))
    parts.append(_table([("not run", "because it"), *LEFT_OUT.items()]))
    return "\n\n".join(parts) + "\n"


def per_step(run: Mapping[str, Any], clock: str = "seconds") -> float:
    """Returns the median over rounds of each round's median: of ``seconds``, or of ``cpu_seconds``."""
    return statistics.median(map(statistics.median, run[clock]))


def time_ratio(run: Mapping[str, Any], ours: Mapping[str, Any]) -> float:
    """Returns the median over rounds of a run's time of a step, divided by ours in the same round."""
    pairs = zip(run["seconds"], ours["seconds"], strict=True)
    return statistics.median(statistics.median(own) / statistics.median(other) for own, other in pairs)


def _row(name: str, results: Mapping[str, Any]) -> tuple[str, ...]:
    run, runs = results["runs"][name], results["runs"]
    counterpart = RUNS[name].ours
    ratio = f"{time_ratio(run, runs[counterpart]):.2f} x" if counterpart in runs else ""
    # This package's spans do not depend on the loss.
    aligned = run.get("alignment") or (results["own_alignment"] if RUNS[name].loss and not counterpart else None)
    label = RUNS[name].label if RUNS[name].side == "trl" else f"this package: {RUNS[name].label}"
    return (
        label,
        f"{per_step(run):.2f}",
        ratio,
        f"{per_step(run, 'cpu_seconds'):.2f}",
        f"{statistics.median(run['peak_bytes']) / 1e9:.2f} GB",
        *(_alignment(aligned) if aligned else ("", "", "")),
        f"{run['bits_per_byte']:.3f}",
    )


def _alignment(counts: Mapping[str, int]) -> tuple[str, str, str]:
    tokens, groups = counts["num_tokens"], counts["num_groups"]
    return (
        _share(counts["num_lost"], tokens),
        _share(counts["num_misaligned"], tokens),
        _share(counts["num_unequal_rows"], groups),
    )


def _share(number: int, total: int) -> str:
    return f"{number:,} of {total:,} ({100 * number / max(1, total):.1f}%)"


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
