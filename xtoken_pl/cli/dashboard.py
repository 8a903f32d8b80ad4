"""``python -m xtoken_pl dashboard``: the charts of a run's TensorBoard events, or its images, as a PNG file."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from xtoken_pl.cli.outputs import check_output, write_output
from xtoken_pl.cli.usage import run_function
from xtoken_pl.utilities.errors import UserError

#: Page -> chart -> tag -> curve (steps and values).
Pages = dict[str, dict[str, dict[str, NDArray[np.float64]]]]

_DPI = 100
_COLUMNS = 4
_CHART_INCHES = (4.5, 2.8)
_TITLE_INCHES = 0.5
_LAYOUT_TAG = "custom_scalars__config__"


def run(arguments: list[str]) -> None:
    """Runs the verb."""
    run_function(dashboard, arguments)


def dashboard(
    logdir: str = "runs",
    output: str = "runs/dashboard.png",
    *,
    page: str = "custom_scalars",
    overwrite: bool = False,
) -> None:
    """Draw the newest run's dashboard as a picture; the run may still be training.

    Args:
        logdir: A run's directory, or one with runs in it.
        output: PNG file to write.
        page: custom_scalars (all charts), the title of one page of charts, such as Losses, or images.
        overwrite: Replace a file that exists.
    """
    check_output("output", output, overwrite=overwrite, suffix=".png")
    run = newest_run(Path(logdir))
    print(f"the newest run: {run}")
    figure = draw_images(read_images(run)) if page == "images" else draw_charts(_chosen(read_charts(run), page, run))
    write_output(output, lambda part: figure.savefig(part, format="png", dpi=_DPI), overwrite=overwrite)


def _chosen(pages: Pages, page: str, run: Path) -> Pages:
    if not pages:
        raise UserError(
            f"a picture needs charts, but the run {run} has no layout of charts with curves yet: add "
            "xtoken_pl.callbacks.TeacherMonitor to trainer.callbacks, or wait for its first log"
        )
    if page == "custom_scalars":
        return pages
    if page not in pages:
        raise UserError(f"page must be custom_scalars, images or one of {', '.join(pages)}, got {page!r}")
    return {page: pages[page]}


# Reading ------------------------------------------------------------------------------------------------------------


def newest_run(logdir: Path) -> Path:
    """Finds the directory in ``logdir`` with the newest events.

    Raises:
        UserError: If there are none.
    """
    events = list(logdir.rglob("events.out.tfevents.*"))
    if not events:
        raise UserError(
            f"logdir must hold a run's TensorBoard events, there are none below {str(logdir)!r}; "
            "train first (`make quickstart`), or give the directory of a run"
        )
    return max(events, key=lambda path: path.stat().st_mtime_ns).parent


def read_charts(run: Path) -> Pages:
    """Reads the charts of the run's custom scalars layout, without charts that have no curve."""
    events = _events(run)
    tags: dict[str, Any] = events.Tags()
    if _LAYOUT_TAG not in tags["tensors"]:
        return {}
    layout = Layout.FromString(events.Tensors(_LAYOUT_TAG)[-1].tensor_proto.string_val[0])
    pages: Pages = {}
    for category in layout.category:
        for chart in category.chart:
            patterns = list(chart.multiline.tag)
            shown = [tag for tag in tags["scalars"] if any(re.match(pattern, tag) for pattern in patterns)]
            curves = {tag: np.array([(e.step, e.value) for e in events.Scalars(tag)], dtype=float) for tag in shown}
            if curves:
                pages.setdefault(category.title, {})[chart.title] = curves
    return pages


def read_images(run: Path) -> dict[str, NDArray[Any]]:
    """Reads the newest image of each tag, ``[height, width, channels]``.

    Raises:
        UserError: If the run has no images.
    """
    events = _events(run)
    tags: list[str] = events.Tags()["images"]
    if not tags:
        raise UserError(
            f"a picture needs something to show, but the run {run} has no images; add a callback that logs some, or "
            "draw --page custom_scalars"
        )
    return {tag: matplotlib.image.imread(io.BytesIO(events.Images(tag)[-1].encoded_image_string)) for tag in tags}


def _events(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run))
    events.Reload()
    return events


# Drawing ------------------------------------------------------------------------------------------------------------


def draw_charts(pages: Pages) -> Figure:
    """Draws all pages in one tall figure, four charts per row."""
    num_rows = [math.ceil(len(charts) / _COLUMNS) for charts in pages.values()]
    heights = [rows * _CHART_INCHES[1] + _TITLE_INCHES for rows in num_rows]
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(_COLUMNS * _CHART_INCHES[0], sum(heights)), layout="constrained")
        parts = figure.subfigures(len(pages), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, rows, (title, charts) in zip(parts, num_rows, pages.items(), strict=True):
            part.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
            grid = part.subplots(rows, _COLUMNS, squeeze=False).ravel()
            for axes, (name, curves) in zip(grid, charts.items(), strict=False):
                _draw_chart(axes, name, curves)
            for axes in grid[len(charts) :]:
                axes.set_axis_off()
    return figure


def _draw_chart(axes: Axes, title: str, curves: dict[str, NDArray[np.float64]]) -> None:
    for tag, curve in curves.items():
        axes.plot(
            curve[:, 0], curve[:, 1], label=tag, linewidth=1.2, marker="o" if len(curve) < 10 else "", markersize=3
        )
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)


def draw_images(images: dict[str, NDArray[Any]]) -> Figure:
    """Draws the images in one figure, one below the other, each in its own size under its tag."""
    title = round(_TITLE_INCHES * _DPI)
    width = max(image.shape[1] for image in images.values())
    height = sum(image.shape[0] + title for image in images.values())
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    for tag, image in images.items():
        figure.text(8 / width, (height - title / 2) / figure.bbox.height, tag, va="center")
        height -= title + image.shape[0]
        figure.figimage(image, 0, height)
    return figure
