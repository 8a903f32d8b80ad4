"""The picture of the dashboard: which run it shows, and that its curves and images are drawn."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboard_runs import write_run

from xtoken_pl.cli.dashboard import dashboard, draw_charts, newest_run, read_charts
from xtoken_pl.utilities.errors import UserError


def test_the_newest_run_is_the_one_that_wrote_last(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a/version_1"), write_run(tmp_path / "b/version_0")
    for place, run in enumerate((second, first)):
        os.utime(next(run.glob("events*")), (1e9 + place, 1e9 + place))
    assert newest_run(tmp_path) == first
    assert newest_run(second) == second


def test_charts_with_a_curve_are_read_with_their_steps_and_values(tmp_path: Path) -> None:
    pages = read_charts(write_run(tmp_path))
    assert {page: list(charts) for page, charts in pages.items()} == {"Losses": ["both", "KD"]}
    assert list(pages["Losses"]["both"]) == ["train/kd", "train/loss"]
    curve = pages["Losses"]["KD"]["train/kd"]
    assert curve.tolist() == [[step, 1 + step % 5] for step in range(40)]


def test_every_chart_is_drawn_with_its_curves(tmp_path: Path) -> None:
    figure: Figure = draw_charts(read_charts(write_run(tmp_path)))
    drawn = {axes.get_title(): axes.lines for part in figure.subfigs for axes in part.axes if axes.get_title()}
    assert list(drawn) == ["both", "KD"]
    assert [line.get_label() for line in drawn["both"]] == ["train/kd", "train/loss"]
    assert drawn["KD"][0].get_xydata()[:, 1].tolist() == [1 + step % 5 for step in range(40)]


def test_one_page_can_be_chosen(tmp_path: Path) -> None:
    write_run(tmp_path / "run", later=True)
    heights = []
    for page in ("custom_scalars", "Later"):
        dashboard(str(tmp_path), str(tmp_path / f"{page}.png"), page=page)
        heights.append(matplotlib.image.imread(tmp_path / f"{page}.png").shape[0])
    assert heights[1] < heights[0]
    with pytest.raises(UserError, match="page must be custom_scalars, images or one of Losses, Later, got 'Loses'"):
        dashboard(str(tmp_path), str(tmp_path / "a.png"), page="Loses")


def test_images_are_drawn_in_their_own_size(tmp_path: Path) -> None:
    write_run(tmp_path / "run", image=True)
    dashboard(str(tmp_path), str(tmp_path / "a.png"), page="images")
    picture = 255 * matplotlib.image.imread(tmp_path / "a.png")[..., :3]
    is_image = np.abs(picture - np.array([0.1, 0.7, 0.9]) * 255).max(-1) < 3
    assert is_image.sum() == 300 * 400


# Bad input -----------------------------------------------------------------------------------------------------------


def test_a_folder_without_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there are none below .*train first"):
        dashboard(str(tmp_path), str(tmp_path / "a.png"))


@pytest.mark.parametrize(("page", "way_out"), [("custom_scalars", "TeacherMonitor"), ("images", "has no images")])
def test_a_run_without_anything_to_show_is_refused(tmp_path: Path, page: str, way_out: str) -> None:
    write_run(tmp_path / "run", layout=False)
    with pytest.raises(UserError, match=way_out):
        dashboard(str(tmp_path), str(tmp_path / "a.png"), page=page)
    assert not (tmp_path / "a.png").exists()


def test_an_output_that_is_no_new_png_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"output must be a \.png file"):
        dashboard(str(tmp_path), str(tmp_path / "a.jpg"))
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="not overwritten by default"):
        dashboard(str(tmp_path), str(tmp_path / "a.png"))
    dashboard(str(tmp_path), str(tmp_path / "a.png"), overwrite=True)
    assert (tmp_path / "a.png").stat().st_size > 0
