"""Training from a real vLLM server gives what the same teacher in this process gives, with the same k."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from configurations import ROOT
from logged import scalars
from vllm_server import NAME, PYTHON, VllmServer, running_server

from xtoken_pl.cli import main

pytestmark = [
    pytest.mark.served,
    pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed: make test-served"),
]

TOP_K = 64
NUM_STEPS = 20
#: Steps whose losses are small enough to show differences in the teacher's rows.
SMALL: dict[str, Any] = {
    "data": {"sequence_length": 128, "batch_size": 2, "num_workers": 1},
    "trainer": {
        "max_steps": NUM_STEPS,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": f"xtoken_pl.callbacks.{name}"} for name in ("DynamicLossScaling", "TeacherMonitor")
        ],
    },
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the quickstart's models and texts, which the tests run in."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["prepare"])
        yield folder


@pytest.fixture(scope="module")
def server(workspace: Path) -> Iterator[VllmServer]:
    with running_server(workspace / "quickstart/teacher-smollm2", workspace / "vllm.log") as server:
        yield server


def fit(name: str, teacher: dict[str, Any], *arguments: str) -> dict[str, list[float]]:
    """Trains by the quickstart's configuration; returns what was logged."""
    overlay = SMALL | {"model": {"teachers": {"smollm2": teacher}}}
    Path(f"{name}.yaml").write_text(yaml.safe_dump(overlay))
    run = ["--config", str(ROOT / "configs/quickstart.yaml"), "--config", f"{name}.yaml"]
    main(["fit", *run, "--trainer.logger.init_args.name", name, *arguments])
    return scalars(Path("runs") / name / "version_0")


def served(server: VllmServer) -> dict[str, Any]:
    return {"url": f"{server.address}/v1", "model": NAME, "top_k": TOP_K}


@pytest.mark.parametrize(
    ("loss", "live_loss"),
    [
        ("xtoken_pl.ProjectionKL", "live_k_tokens.LiveProjectionKL"),
        ("xtoken_pl.HybridKL", "live_k_tokens.LiveHybridKL"),
        ("xtoken_pl.BytePrefixKL", "xtoken_pl.BytePrefixKL"),
    ],
)
def test_twenty_steps_from_the_server_are_those_from_the_teacher(server: VllmServer, loss: str, live_loss: str) -> None:
    of_k_tokens = {"class_path": live_loss, "init_args": {"teacher_top_k": TOP_K}}
    live = fit(f"live_{loss}", {"loss": of_k_tokens})
    asked = fit(f"served_{loss}", {"loss": {"class_path": loss}, "server": served(server)})
    for tag in ("train/kd", "train/loss"):
        assert len(live[tag]) == NUM_STEPS
        assert asked[tag] == pytest.approx(live[tag], rel=1e-4)
