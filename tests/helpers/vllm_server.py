"""A real vLLM server, in the environment that `make test-served` installs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import requests

PYTHON = Path(__file__).parents[2] / ".venv-served/bin/python"
NAME = "smollm2"
#: Of numbers that are computed on a CPU and compared with the same model in this process.
OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-logprobs", "128"]
#: A guard against a server that hangs; one that ends is noticed at once.
_LONGEST_START = 900  # seconds


class VllmServer:
    """A server of one model on a port of its own.

    Args:
        model: Directory of the model.
        log: File that the server's output is appended to.
        options: Further options of the server.
    """

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.log = log
        module = "vllm.entrypoints.openai.api_server"  # the command `vllm` wants a package of that name
        place = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME]
        self._command = [str(PYTHON), "-m", module, "--model", str(model), *place, *OPTIONS, *options]

    def start(self) -> None:
        """Starts the server, in a process group of its own."""
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> None:
        """Waits until the server answers; raises an error with the end of its log if it cannot."""
        latest = time.monotonic() + _LONGEST_START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > latest:
                lines = self.log.read_text(errors="replace").splitlines()
                raise RuntimeError("\n".join(["the vLLM server did not start:", *lines[-40:]]))
            time.sleep(0.5)

    def kill(self) -> None:
        """Ends the server and its workers at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.address}/health", timeout=5).ok
        except requests.RequestException:
            return False


@contextmanager
def running_server(model: Path, log: Path, *options: str) -> Iterator[VllmServer]:
    """A server while it runs."""
    server = VllmServer(model, log, *options)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


class RestartServer(pl.Callback):
    """Kills a server in the middle of a run, and starts it again without waiting for it."""

    server: VllmServer

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 5:
            self.server.kill()
            self.server.start()
