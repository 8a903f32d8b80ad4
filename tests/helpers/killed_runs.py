"""Starts runs as processes of their own, and kills them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml
from logged import train_scalars

# Processes find the callback that ends them.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}


def fit(workspace: Path, name: str, *arguments: str) -> int:
    """Runs to the end, or to its death; returns the exit status."""
    command = [sys.executable, "-m", "xtoken_pl", "fit", "--config", "config.yaml"]
    command += ["--trainer.logger.init_args.name", name, *arguments]
    with (workspace / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=workspace, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            return process.wait(timeout=240)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what a dead process has left behind


def finish(workspace: Path, name: str, *arguments: str, version: int = 0) -> dict[str, list[float]]:
    """The scalars of a run that ends well."""
    status = fit(workspace, name, *arguments)
    assert status == 0, (workspace / f"{name}.log").read_text()[-4000:]
    return train_scalars(workspace / f"runs/{name}/version_{version}")


def killed(workspace: Path, name: str, moment: str, step: int, *arguments: str, rank: int = 0) -> None:
    death = {"class_path": "sudden_death.SuddenDeath", "init_args": {"moment": moment, "step": step, "rank": rank}}
    (workspace / f"{name}.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [death]}}))
    status = fit(workspace, name, *arguments, "--config", f"{name}.yaml")
    assert status != 0, "the run was not killed"


def behind(expected: dict[str, list[float]], step: int) -> dict[str, list[float]]:
    return {tag: values[step:] for tag, values in expected.items()}
