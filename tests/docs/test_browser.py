"""The documentation's picture of TensorBoard, in a real browser."""

from __future__ import annotations

import importlib.util
import time
import uuid
from pathlib import Path
from types import ModuleType

import matplotlib.image
import numpy as np
import pytest
from tensorboard_runs import write_run

CURVE = (255, 112, 67)  # TensorBoard's colour of the first run


def browser() -> ModuleType:
    """docs/tooling/browser.py, which is not in a package."""
    spec = importlib.util.spec_from_file_location("browser", Path(__file__).parents[2] / "docs/tooling/browser.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    browser().take_picture(str(tmp_path / "runs"), str(tmp_path / "a.png"), timeout=300)
    picture = np.rint(255 * matplotlib.image.imread(tmp_path / "a.png")[..., :3])
    height, width, _ = picture.shape
    assert width == 1800
    assert 600 < height < 1500  # cut below the last chart
    is_curve = np.abs(picture[:, 360:] - CURVE).sum(-1) < 10  # right of the list of runs
    assert is_curve.sum() > 500
    assert ended(mark), alive(mark)
