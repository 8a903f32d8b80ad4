"""The table of verbs: what the command line knows without importing a model's libraries."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import xtoken_pl
from xtoken_pl.cli import main
from xtoken_pl.cli.report import run
from xtoken_pl.cli.verbs import VERBS

HEAVY = ("torch", "lightning", "transformers", "datasets", "jsonargparse", "tensorboard", "matplotlib")


def imported_by(statements: str) -> set[str]:
    """The heavy packages that a Python process has imported after some statements."""
    report = f"import sys; print('imported:', *(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{statements}\n{report}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.rpartition("imported:")[2].split())


@pytest.mark.parametrize("argument", ["--help", "ftt"])
def test_help_and_a_wrong_verb_import_no_heavy_package(argument: str) -> None:
    imports = "from xtoken_pl.cli import main\nfrom xtoken_pl.cli.report import run"
    assert imported_by(f"{imports}\nrun(main, ['{argument}'])") == set()


def test_a_public_name_imports_its_module() -> None:
    assert "torch" in imported_by("from xtoken_pl import TokenKL")


def test_all_public_names_can_be_imported_and_are_listed() -> None:
    assert all(getattr(xtoken_pl, name) is not None for name in xtoken_pl.__all__)
    assert set(xtoken_pl.__all__) <= set(dir(xtoken_pl))
    with pytest.raises(AttributeError, match="has no attribute 'TokenKl'"):
        xtoken_pl.TokenKl  # noqa: B018


def test_help_lists_every_verb_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, verb in VERBS.items():
        assert any(line.split(maxsplit=1) == [name, verb.description] for line in lines)


def test_a_wrong_verb_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["ftt"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the first argument must be a verb, got 'ftt'; did you mean fit?\n")
    assert all(verb.description in said for verb in VERBS.values())


@pytest.mark.parametrize("module", sorted({verb.module for verb in VERBS.values()}))
def test_every_verb_has_a_module_that_runs_it(module: str) -> None:
    assert callable(import_module(f"xtoken_pl.cli.{module}").run)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_its_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    assert "--config" in capsys.readouterr().out
