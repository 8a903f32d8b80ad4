"""Pictures of runs: final values by teacher, and values over steps. Colours are Okabe and Ito's."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from PIL import Image

from experiments.finished import Curve, Finished
from experiments.statistics import estimate
from experiments.suites import Run, Suite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.side_by_side import Column

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "D", "^", "v", "P")  # with the colours, so that a grey print can be read as well
_LINES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), ":", (0, (7, 2)))
_NO_TEACHER = "#4D4D4D"
_ALONE = "cross-entropy alone"
_styled = rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True})
_INCHES, _DPI = 7.5, 140  # 1050 pixels: README width, and sharp on fine displays
_NUMERALS = "numerals/"
_NUMERALS_ORDER = ("accuracy", "probability", "mass", "ce_gradient", "kd_gradient", "kd_gradient_on_label")


def by_teacher(suite: Suite) -> list[Run]:
    """The runs of a suite, those of a teacher together, in the order in which teachers come first."""
    teachers = list(dict.fromkeys(run.teacher for run in suite.runs.values()))
    return sorted(suite.runs.values(), key=lambda run: teachers.index(run.teacher))


@_styled
def comparison(suite: Suite, finished: Finished) -> Figure:
    """The primary metric of every finished run: seeds as points, mean and 95% interval, grouped by teacher.

    A line marks the mean of the baseline, where all runs have the same. Runs that are not finished are left out.

    Raises:
        ValueError: If no run of the suite has the metric.
    """
    tag, title = next(iter(suite.metrics.items()))
    values = {run.name: [*finished.metric(suite.name, run.name, tag).values()] for run in suite.runs.values()}
    rows = [run for run in by_teacher(suite) if values[run.name]]
    if not rows:
        raise ValueError(f"no run of suite {suite.name!r} has {tag!r}; run some before they are drawn")
    teachers = dict.fromkeys(run.teacher for run in rows if run.teacher)
    looks = dict(zip(teachers, cycle(zip(_COLORS, _MARKERS, strict=True)), strict=False)) | {"": (_NO_TEACHER, "X")}
    figure = _figure(height=0.24 * len(rows) + 1.3)
    axes = figure.subplots()
    baselines = {run.baseline for run in rows if run.baseline}
    if len(baselines) == 1 and values[baseline := baselines.pop()]:
        mean, name = estimate(values[baseline]).mean, suite.runs[baseline].title
        axes.axvline(mean, color=_NO_TEACHER, linewidth=1, linestyle="--", zorder=1, label=f"mean of {name}")
    shown: set[str] = set()
    for place, run in enumerate(rows):
        found, (color, marker) = estimate(values[run.name]), looks[run.teacher]
        axes.plot(values[run.name], [place] * found.n, "|", color=color, alpha=0.55, markersize=8, zorder=2)
        label = None if run.teacher in shown else run.teacher or "no teacher"
        shown.add(run.teacher)
        axes.errorbar(
            found.mean, place, xerr=found.half, fmt=marker, color=color, markersize=5, capsize=3, zorder=3, label=label
        )
        if place and run.teacher != rows[place - 1].teacher:
            axes.axhline(place - 0.5, color="#CCCCCC", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(rows)), [run.title for run in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#E5E5E5")
    axes.set_xlabel(f"{title}: seeds, mean and 95% interval")
    axes.set_title(suite.title, loc="left", fontweight="bold")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


@_styled
def curves(suite: Suite, finished: Finished, tag: str, runs: Sequence[str], title: str | None = None) -> Figure:
    """A logged value over steps: the mean of the seeds, and a band from the lowest to the highest of them.

    Raises:
        ValueError: If a run is unknown, or a finished one did not log the tag, or none is finished.
    """
    found = {run: finished.curves(suite.name, run, tag) for run in _known(suite, runs)}
    without = [run for run, of_seeds in found.items() if not of_seeds and finished.of(suite.name, run)]
    if without:
        logged = sorted({tag for done in finished.of(suite.name, without[0]).values() for tag in done.history})
        raise ValueError(f"{suite.name}/{without[0]} must have logged {tag!r}, but has only {logged}; name one of them")
    if not any(found.values()):
        raise ValueError(f"none of {list(runs)} of suite {suite.name!r} is finished; run some before they are drawn")
    figure = _figure(height=3.4)
    axes = figure.subplots()
    _draw_curves(axes, suite, found, title or suite.metrics.get(tag, tag))
    axes.set_xlabel("step")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


@_styled
def numerals(suite: Suite, finished: Finished, runs: Sequence[str]) -> Figure:
    """A panel for every ``numerals/`` tag that one of the runs logged, drawn as :func:`curves` does.

    Raises:
        ValueError: If a run is unknown, or none logged such a tag.
    """
    known = _known(suite, runs)
    logged = {tag for run in known for done in finished.of(suite.name, run).values() for tag in done.history}
    tags = sorted((tag for tag in logged if tag.startswith(_NUMERALS)), key=_numerals_order)
    if not tags:
        raise ValueError(f"none of {list(runs)} of suite {suite.name!r} logged a {_NUMERALS} tag; add NumeralMonitor")
    columns = min(2, len(tags))
    rows = -(-len(tags) // columns)
    figure = _figure(height=2.1 * rows + 0.6)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten().tolist()
    for axes, tag in zip(panels, tags, strict=False):
        of_runs = {run: finished.curves(suite.name, run, tag) for run in known}
        _draw_curves(axes, suite, of_runs, tag.removeprefix(_NUMERALS).replace("_", " "))
        if "gradient" in tag:
            axes.axhline(0, color="#999999", linewidth=0.8, zorder=1)
    for axes in panels[len(tags) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(tags) - columns) : len(tags)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("step")
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


@_styled
def panels(columns: Sequence[Column], losses: Sequence[str], flagship: str) -> Figure:
    """A panel for every column of the losses side by side: means and 95% intervals, a row for every loss.

    Cross-entropy alone is a dashed line; losses that are the first, or level with it, are filled, one loss is coloured.
    """
    rows = [loss for loss in losses if loss != _ALONE]
    across = min(4, len(columns))
    down = -(-len(columns) // across)
    figure = _figure(height=(0.17 * len(rows) + 0.55) * down + 0.2)
    every = figure.subplots(down, across, squeeze=False, sharey=True).flatten().tolist()
    for axes, column in zip(every, columns, strict=False):
        for place, loss in enumerate(rows):
            if values := [*column.of(loss).values()]:
                found, color = estimate(values), _COLORS[1] if loss == flagship else _COLORS[0]
                fill = color if column.is_level(loss) else "white"
                axes.errorbar(
                    found.mean,
                    place,
                    xerr=found.half,
                    fmt="o",
                    color=color,
                    markersize=4,
                    markerfacecolor=fill,
                    capsize=2,
                )
        if alone := [*column.of(_ALONE).values()]:
            axes.axvline(estimate(alone).mean, color=_NO_TEACHER, linewidth=1, linestyle="--", zorder=1)
        axes.set_title(column.title, loc="left", fontsize=8)
        axes.grid(axis="x", color="#E5E5E5")
        axes.tick_params(labelsize=7)
    every[0].set_yticks(range(len(rows)), rows)
    every[0].set_ylim(len(rows) - 0.4, -0.6)
    for axes in every[len(columns) :]:
        axes.set_visible(False)
    return figure


@_styled
def png(figure: Figure) -> bytes:
    """The picture as a PNG of 256 colours, a third of the size; the same figure gives the same bytes."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=_DPI, metadata={"Software": None})
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def _known(suite: Suite, runs: Sequence[str]) -> list[str]:
    unknown = [run for run in runs if run not in suite.runs]
    if unknown:
        raise ValueError(f"suite {suite.name!r} has no run {unknown[0]!r}; name some of {list(suite.runs)}")
    return list(runs)


def _draw_curves(axes: Axes, suite: Suite, found: Mapping[str, Mapping[int, Curve]], title: str) -> None:
    """Every run keeps its colour and its line, whether or not the runs before it are there."""
    for (run, of_seeds), color, line in zip(found.items(), cycle(_COLORS), cycle(_LINES), strict=False):
        if not of_seeds:
            continue
        steps, values = _on_common_steps(f"{suite.name}/{run}", of_seeds)
        axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, values.mean(0), color=color, linestyle=line, linewidth=1.6, label=_label(suite.runs[run]))
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(color="#E5E5E5")
    axes.margins(x=0.01)


def _on_common_steps(name: str, of_seeds: Mapping[int, Curve]) -> tuple[list[int], np.ndarray]:
    """The steps that all seeds logged, and the values [seeds, steps]."""
    by_step = [dict(curve) for curve in of_seeds.values()]
    steps = sorted(set.intersection(*(set(values) for values in by_step)))
    if not steps:
        raise ValueError(f"the seeds {sorted(of_seeds)} of {name} must share steps, but share none; run them alike")
    return steps, np.array([[values[step] for step in steps] for values in by_step])


def _label(run: Run) -> str:
    return f"{run.title}, {run.teacher}" if run.teacher else run.title


def _numerals_order(tag: str) -> tuple[int, str]:
    kind = tag.removeprefix(_NUMERALS).split("/")[0]
    known = kind in _NUMERALS_ORDER
    return (_NUMERALS_ORDER.index(kind) if known else len(_NUMERALS_ORDER), tag)


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure  # without pyplot: drawn by Agg, whatever the machine's display

    return Figure(figsize=(_INCHES, height), layout="constrained")
