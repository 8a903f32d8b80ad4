"""A picture of a run's TensorBoard, taken in a real browser, for the documentation.

``python docs/tooling/browser.py``, after ``make quickstart``; writes ``docs/pictures/dashboard.png``.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.request import ProxyHandler, build_opener

from jsonargparse import auto_cli

from xtoken_pl.cli.dashboard import newest_run, read_charts, read_images
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

T = TypeVar("T")

#: Of TensorBoard, by the name in its address.
PageName = Literal["custom_scalars", "images"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
_BROWSER_OPTIONS = [
    "--no-sandbox",  # root may have none; only our own server is visited
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
_WIDTH, _HEIGHT = 1800, 8000  # four charts side by side; room for all, since TensorBoard draws what is seen
_MARGIN = 24
_POLL_SECONDS = 0.5


def take_picture(
    logdir: str = "runs",
    output: str = "docs/pictures/dashboard.png",
    *,
    page: PageName = "custom_scalars",
    browser: str | None = None,
    timeout: float = 120.0,
) -> None:
    """Take a picture of the newest run's TensorBoard.

    Args:
        logdir: A run's directory, or one with runs in it.
        output: PNG file to write, or to replace.
        page: TensorBoard's page: custom_scalars (all charts) or images.
        browser: Path of Chromium, Chrome or Edge; by default the first one that is installed.
        timeout: Seconds for TensorBoard to read the run, and for the browser to draw it.
    """
    run = newest_run(Path(logdir))
    num_items = len(read_images(run)) if page == "images" else sum(map(len, read_charts(run).values()))
    with _browser(browser) as opened, _tensorboard(run, Path(logdir), page, timeout) as address:
        picture = _take(opened, f"{address}?darkMode=false#{page}&_smoothingWeight=0", page, num_items, timeout)
    with atomic_path(output, kind="file", overwrite=True) as part:
        part.write_bytes(picture)
    print(f"written to {output}")


# TensorBoard --------------------------------------------------------------------------------------------------------


@contextmanager
def _tensorboard(run: Path, logdir: Path, page: PageName, timeout: float) -> Iterator[str]:
    """Serves one run, and gives the address when it has been read."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    address = f"http://localhost:{port}/"
    run = run.absolute()
    root = logdir.absolute() if run != logdir.absolute() else run.parent
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        link = Path(folder) / root.name / run.relative_to(root)  # this run alone, by its name
        link.parent.mkdir(parents=True)
        link.symlink_to(run)
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", root.name, "--host", "localhost"]
        command += ["--port", str(port), "--load_fast=false"]
        server = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        try:
            tags = f"{address}data/plugin/{'images' if page == 'images' else 'scalars'}/tags"
            _wait(lambda: _has_tags(server, tags), timeout, "TensorBoard has not read the run")
            yield address
        except _StoppedError:
            said.seek(0)
            raise UserError(f"TensorBoard stopped: {said.read().decode(errors='replace')[-2000:]}") from None
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


class _StoppedError(Exception):
    """The server is no more."""


def _has_tags(server: subprocess.Popen[bytes], address: str) -> bool:
    if server.poll() is not None:
        raise _StoppedError
    try:
        # No proxy stands between this machine and itself.
        with build_opener(ProxyHandler({})).open(address, timeout=10) as answer:
            return any(json.load(answer).values())
    except OSError:
        return False


def _wait(is_done: Callable[[], bool], timeout: float, what: str) -> None:
    end = time.monotonic() + timeout
    while not is_done():
        if time.monotonic() > end:
            raise UserError(f"{what} within {timeout:g} s; give it longer with --timeout")
        time.sleep(_POLL_SECONDS)


# The browser --------------------------------------------------------------------------------------------------------


def find_browser(given: str | None) -> str | None:
    """The browser's file: the one that is given, or the first one that is installed; None where there is none.

    Raises:
        UserError: If the one that is given does not exist.
    """
    if given is not None and shutil.which(given) is None:
        raise UserError(
            f"browser must be the file of Chromium, Chrome or Edge, there is none at {given!r}; leave it out to look "
            f"for one ({', '.join(BROWSERS)})"
        )
    return next(filter(None, map(shutil.which, BROWSERS if given is None else (given,))), None)


@contextmanager
def _browser(given: str | None) -> Iterator[Browser]:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise UserError(
            "a picture of TensorBoard needs playwright, which is not installed: pip install 'xtoken_pl[docs]'"
        ) from error
    path = find_browser(given)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=_BROWSER_OPTIONS)
        except Error as error:
            if path is None:  # playwright has none of its own either
                raise UserError(
                    f"a browser must be installed, and neither {', '.join(BROWSERS)} nor playwright's own is; "
                    "`apt-get install chromium` or `python -m playwright install chromium` does it, or name the "
                    "browser's file with --browser"
                ) from error
            raise UserError(f"the browser {path} does not start: {error}") from error
        try:
            yield browser
        finally:
            browser.close()


def _take(browser: Browser, address: str, page: PageName, num_items: int, timeout: float) -> bytes:
    """A PNG of the whole page, when all of its items are drawn."""
    view = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
    view.set_default_timeout(1000 * timeout)
    view.goto(address)
    view.get_by_text("Show actual image size" if page == "images" else "Ignore outliers in chart scaling").click()
    _wait(lambda: _count_drawn(view, page) >= num_items, timeout, f"the browser has not drawn {num_items} {page}")
    # Curves of one run share a colour: their symbols need the legends, which are folded.
    view.locator(".toggle-matches-button").evaluate_all("buttons => buttons.forEach(button => button.click())")
    sections = view.locator("tf-category-paginated-view")
    bottom = _settled(
        lambda: sections.evaluate_all("all => Math.max(...all.map(one => one.getBoundingClientRect().bottom))"), timeout
    )
    view.set_viewport_size({"width": _WIDTH, "height": math.ceil(bottom) + _MARGIN})
    return _settled(view.screenshot, timeout)


def _count_drawn(view: Page, page: PageName) -> int:
    if page == "images":
        return view.locator("tf-image-loader img").evaluate_all(
            "images => images.filter(image => image.complete && image.naturalWidth).length"
        )
    return view.locator(".matches-text").filter(has_text=re.compile(r"\([1-9]")).count()


def _settled(read: Callable[[], T], timeout: float) -> T:
    """What ``read`` gives when it no longer changes."""
    values = [read()]

    def is_same() -> bool:
        values.append(read())
        return values[-1] == values[-2]

    _wait(is_same, timeout, "the page is still changing")
    return values[-1]


if __name__ == "__main__":
    auto_cli(take_picture, as_positional=False)
