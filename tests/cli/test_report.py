"""The command line as a process: exit codes, tracebacks, interrupts; only a UserError is printed as one message."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from small_models import packing_tokenizer, write_model
from small_run import small_run, write_models, write_texts

from xtoken_pl.cli import main
from xtoken_pl.cli.fit import lightning_errors
from xtoken_pl.cli.report import run
from xtoken_pl.utilities.errors import UsageError, UserError, system_errors


@pytest.fixture(autouse=True)
def without_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTOKEN_PL_TRACEBACK", "0")  # restored after the test


def fail_with(error: BaseException) -> Callable[[Any], None]:
    def main(_: Any) -> None:
        raise error

    return main


def the_message(said: str) -> str:
    """The one message in what was said."""
    (message,) = re.findall(r"^error: (.*)$", said, flags=re.MULTILINE)
    return message


@pytest.mark.parametrize(("error", "code"), [(UserError("a\nb"), 1), (UsageError("a\nb"), 2)])
def test_a_user_error_is_one_line_and_sets_the_exit_code(
    capsys: pytest.CaptureFixture[str], error: UserError, code: int
) -> None:
    assert run(fail_with(error)) == code
    assert capsys.readouterr().err == "error: a b\n(--traceback shows where it was raised)\n"


def test_the_traceback_is_shown_when_asked_for() -> None:
    with pytest.raises(UserError, match=r"there is none at 'no\.yaml'"):
        run(main, ["fit", "--config", "no.yaml", "--traceback"])
    assert os.environ["XTOKEN_PL_TRACEBACK"] == "1"  # for processes that are started


@pytest.mark.parametrize("error", [KeyError("key"), AssertionError(), ValueError("of somebody else"), TypeError("t")])
def test_every_other_error_is_a_defect_and_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        run(fail_with(error))
    assert any("please report it" in note for note in raised.value.__notes__)


def test_a_value_error_in_our_own_code_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtoken_pl.cli.command_line.choose_verb", lambda _: int("no number"))
    with pytest.raises(ValueError, match="no number") as raised:
        run(main, ["fit"])
    assert any("please report it" in note for note in raised.value.__notes__)


def test_an_interrupt_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(fail_with(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_memory_that_is_used_up_is_a_user_error(error: Exception) -> None:
    with pytest.raises(UserError, match=r"lower data\.batch_size"), system_errors(), lightning_errors():
        raise error


def test_a_full_disk_is_a_user_error() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "a/b")
    with pytest.raises(UserError, match=r"No space left on device: 'a/b'; check the path"), system_errors():
        raise full


def test_what_lightning_says_of_a_setting_is_a_user_error() -> None:
    with pytest.raises(UserError, match="no logger"), lightning_errors():
        raise MisconfigurationException("no logger")


# As real processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_models(folder)
    write_model(folder / "small_head", packing_tokenizer(), num_head_rows=500)
    write_texts(folder, length=400)
    (folder / "run.yaml").write_text(yaml.safe_dump(small_run()))
    return folder


def in_a_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without bars, which another process may have left open on the line that a message begins.
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "xtoken_pl", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **settings},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


class Tracker(pl.Callback):
    """Needs a package that is not there, or a setting that Lightning refuses."""

    def __init__(self, *, misses_package: bool) -> None:
        raise ModuleNotFoundError("tracker") if misses_package else MisconfigurationException("no tracker")


@pytest.mark.parametrize(("misses_package", "reason"), [(True, "not installed: tracker"), (False, "no tracker")])
def test_a_class_that_cannot_be_made_for_the_users_reasons_is_a_user_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, misses_package: bool, reason: str
) -> None:
    monkeypatch.chdir(folder)
    tracker = ["--trainer.callbacks", f"{__name__}.Tracker", "--trainer.callbacks.misses_package", str(misses_package)]
    with pytest.raises(UserError, match=reason):
        main(["fit", "--config", "run.yaml", *tracker])


@pytest.mark.slow
def test_a_process_ends_with_the_message_and_its_code(folder: Path) -> None:
    done = in_a_process(folder, "fit", "--config", "run.yaml", "--trainer.max_steps", "ten")
    assert done.returncode == 2
    assert the_message(done.stderr) == "--trainer.max_steps must be a whole number, got 'ten'"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_process_prints_every_line_of_the_log_once(folder: Path) -> None:
    done = in_a_process(folder, "fit", "--config", "run.yaml", "--trainer.devices", "two")
    assert done.stderr.count("Seed set to 1") == 1


@pytest.mark.slow
def test_a_process_shows_the_traceback_when_asked(folder: Path) -> None:
    done = in_a_process(folder, "--traceback", "audit", "--student", "no", "--teacher", "split")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "a tokenizer must be a directory" in done.stderr


@pytest.mark.slow
def test_two_processes_say_it_each_for_themselves(folder: Path) -> None:
    """What both find ends both; the second one may say it, too, and which it is."""
    two = ["--trainer.devices", "2", "--model.student.model", "small_head"]
    done = in_a_process(folder, "fit", "--config", "run.yaml", *two)
    assert done.returncode == 1
    assert "a row for every token" in the_message(done.stderr)
    assert "Traceback" not in done.stderr
