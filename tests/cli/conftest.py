"""A working folder for runs of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import Run, write_monitored_run

from xtoken_pl.cli import main


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with models, texts and a configuration."""
    root = tmp_path_factory.mktemp("workspace")
    write_monitored_run(root)
    return root


@pytest.fixture
def run(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a verb in the workspace; returns the newest run's folder."""
    monkeypatch.chdir(workspace)

    def run(verb: str = "fit", *arguments: str, config: str = "config.yaml") -> Path:
        main([verb, "--config", config, *arguments])
        return max((workspace / "runs/test").glob("version_*"), key=lambda folder: int(folder.name.split("_")[1]))

    return run
