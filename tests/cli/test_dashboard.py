"""The picture of the dashboard: which run it shows, that its curves are drawn, and that nothing is left running."""

from __future__ import annotations

import math
import os
import time
import uuid
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from xtoken_pl.callbacks.charts import custom_scalars_layout
from xtoken_pl.cli import dashboard as dashboard_module
from xtoken_pl.cli.dashboard import PageName, count_items, dashboard, find_browser, newest_run
from xtoken_pl.utilities.errors import UserError

CURVE = (255, 112, 67)  # TensorBoard's colour of the first run


def write_run(folder: Path, *, layout: bool = True, image: bool = False) -> Path:
    """Two charts with curves, and one whose tag has not been logged yet."""
    charts = {"Losses": {"both": ["train/loss", "train/kd"], "KD": ["train/kd"]}, "Later": {"val": ["val/ce"]}}
    with SummaryWriter(str(folder)) as writer:
        if layout:
            writer.add_custom_scalars(custom_scalars_layout(charts))
        for step in range(40):
            writer.add_scalar("train/loss", 1 + math.exp(-step / 10), step)
            writer.add_scalar("train/kd", 1 + step % 5, step)
        if image:
            writer.add_image("audit/bars", np.stack([np.full((300, 400), level) for level in (0.1, 0.7, 0.9)]))
    return folder


def test_the_newest_run_is_the_one_that_wrote_last(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a/version_1"), write_run(tmp_path / "b/version_0")
    for place, run in enumerate((second, first)):
        os.utime(next(run.glob("events*")), (1e9 + place, 1e9 + place))
    assert newest_run(tmp_path) == first
    assert newest_run(second) == second


def test_charts_are_counted_that_have_a_curve(tmp_path: Path) -> None:
    run = write_run(tmp_path, image=True)
    assert count_items(run, "custom_scalars") == 2
    assert count_items(run, "images") == 1


# Bad input -----------------------------------------------------------------------------------------------------------


def test_a_folder_without_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there are none below .*train first"):
        dashboard(str(tmp_path), str(tmp_path / "a.png"))


@pytest.mark.parametrize(("page", "way_out"), [("custom_scalars", "TeacherMonitor"), ("images", "has no images")])
def test_a_run_without_anything_to_show_is_refused(tmp_path: Path, page: PageName, way_out: str) -> None:
    write_run(tmp_path / "run", layout=False)
    with pytest.raises(ValueError, match=way_out):
        dashboard(str(tmp_path), str(tmp_path / "a.png"), page=page)


def test_an_output_that_is_no_new_png_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"output must be a \.png file"):
        dashboard(str(tmp_path), str(tmp_path / "a.jpg"))
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="not overwritten by default"):
        dashboard(str(tmp_path), str(tmp_path / "a.png"))


def test_the_first_browser_that_is_installed_is_taken_and_a_given_one_before_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_browser(None) is None
    for name in ("google-chrome", "chromium", "mine"):
        (tmp_path / name).touch(mode=0o755)
    assert find_browser(None) == str(tmp_path / "chromium")
    assert find_browser(str(tmp_path / "mine")) == str(tmp_path / "mine")
    with pytest.raises(UserError, match="there is none at 'other'; leave it out"):
        find_browser("other")


def test_without_a_browser_the_error_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="`apt-get install chromium` or `python -m playwright install"):
        dashboard(str(tmp_path), str(tmp_path / "a.png"))
    assert not (tmp_path / "a.png").exists()


def test_a_server_that_stops_is_no_reason_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    run = write_run(tmp_path / "run")
    with (
        pytest.raises(UserError, match="TensorBoard stopped"),
        dashboard_module._tensorboard(run, tmp_path, "images", 60.0),
    ):
        pass


# In a real browser ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What stands in the environment of every process that the test starts."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("XTOKEN_PL_TEST", mark)
    return mark.encode()


def alive(mark: bytes) -> list[str]:
    """The commands of processes with that mark, but for this one, whose environment was made before."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:  # it has ended, or is another user's
            continue
    return found


def ended(mark: bytes) -> bool:
    """Whether all of them end within ten seconds."""
    end = time.monotonic() + 10
    while alive(mark) and time.monotonic() < end:
        time.sleep(0.1)
    return not alive(mark)


@pytest.mark.slow
def test_picture_shows_the_curves_and_nothing_is_left_running(tmp_path: Path, mark: bytes) -> None:
    write_run(tmp_path / "runs/version_0")
    dashboard(str(tmp_path / "runs"), str(tmp_path / "a.png"), timeout=300)
    picture = np.rint(255 * matplotlib.image.imread(tmp_path / "a.png")[..., :3])
    height, width, _ = picture.shape
    assert width == 1800
    assert 600 < height < 1500  # cut below the last chart
    is_curve = np.abs(picture[:, 360:] - CURVE).sum(-1) < 10  # right of the list of runs
    assert is_curve.sum() > 500
    assert ended(mark), alive(mark)


@pytest.mark.slow
def test_picture_of_images_shows_them_in_their_size(tmp_path: Path, mark: bytes) -> None:
    write_run(tmp_path / "runs/version_0", image=True)
    dashboard(str(tmp_path / "runs"), str(tmp_path / "a.png"), page="images", timeout=300)
    picture = 255 * matplotlib.image.imread(tmp_path / "a.png")[..., :3]
    is_image = np.abs(picture - np.array([0.1, 0.7, 0.9]) * 255).max(-1) < 3
    assert is_image.sum() == pytest.approx(300 * 400, rel=0.02)
    assert ended(mark), alive(mark)


@pytest.mark.slow
def test_an_error_in_the_browser_leaves_no_picture_and_nothing_running(
    tmp_path: Path, mark: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "runs/version_0")
    running: list[str] = []

    def fail(*_: object) -> int:
        running.extend(alive(mark))
        raise RuntimeError("the page is gone")

    monkeypatch.setattr(dashboard_module, "_count_drawn", fail)
    with pytest.raises(UserError, match="the page is gone"):
        dashboard(str(tmp_path / "runs"), str(tmp_path / "a.png"), timeout=300)
    assert all(any(name in command for command in running) for name in ("tensorboard", "chrom"))
    assert not (tmp_path / "a.png").exists()
    assert ended(mark), alive(mark)
