"""Served teachers in the loader's workers and across the death of the server's process."""

from __future__ import annotations

import logging
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import stand_in_server
from served_teachers import Clock, ask, assert_equal_rows, served, token_batch
from stand_in_server import StandInServer
from torch.utils.data import DataLoader

from xtoken_pl.batch import AllRows
from xtoken_pl.data.worker_errors import CarryingCollate, raise_carried
from xtoken_pl.specs import Server
from xtoken_pl.teachers.served.teacher import ServedTeacher
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

_BATCH = token_batch([[5, 17, 300, 42, 8], [77, 6, 6, 410]], [[0, 1, 3], [2]])


class Collate:
    """Asks for the same batch, whatever the windows are."""

    def __init__(self, teacher: ServedTeacher) -> None:
        self.teacher = teacher

    def __call__(self, windows: list[Any]) -> AllRows:
        return ask(self.teacher, _BATCH)


def _teacher(url: str, vocabulary: CanonicalVocabulary, **options: Any) -> ServedTeacher:
    return ServedTeacher("phi", Server(**({"url": url, "model": "teacher", "top_k": 8} | options)), vocabulary)


def _read(teacher: ServedTeacher, context: str) -> list[AllRows]:
    collate = CarryingCollate(Collate(teacher))
    loader = DataLoader([0, 1], collate_fn=collate, num_workers=1, multiprocessing_context=context)  # type: ignore[arg-type, var-annotated]
    return list(raise_carried(loader))


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_worker_asks_for_the_same_rows(server: StandInServer, vocabulary: CanonicalVocabulary, context: str) -> None:
    teacher = _teacher(server.url, vocabulary)
    expected = ask(teacher, _BATCH)  # with a session of this process
    server.fail("reset")
    for rows in _read(teacher, context):
        assert_equal_rows(rows, expected)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_worker_passes_on_the_error_and_the_log_line(
    server: StandInServer,
    vocabulary: CanonicalVocabulary,
    clock: Clock,
    context: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server.fail(*["error"] * 20)
    # Lightning's own handler keeps the stream of its import; a forked worker inherits this one.
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("lightning.pytorch").addHandler(handler)
    try:
        with pytest.raises(UserError, match=r"must answer within patience=4 s.*status 503") as caught:
            _read(served(server, vocabulary, clock, patience=4.0, concurrency=1), context)
    finally:
        logging.getLogger("lightning.pytorch").removeHandler(handler)
    assert type(caught.value) is UserError
    assert "Traceback" not in str(caught.value)
    assert "is asked again for up to 4 s" in capfd.readouterr().err


def test_a_refusal_survives_pickling(server: StandInServer, vocabulary: CanonicalVocabulary) -> None:
    server.max_logprobs = 2
    with pytest.raises(UserError) as caught:
        ask(_teacher(server.url, vocabulary), _BATCH)
    error = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(error, UserError)
    assert str(error) == str(caught.value)


def test_a_copy_in_another_process_knows_the_probe(server: StandInServer, vocabulary: CanonicalVocabulary) -> None:
    teacher = _teacher(server.url, vocabulary)
    expected = ask(teacher, _BATCH)
    teacher.remember_probe(teacher.scorer.probe.log_probs)  # type: ignore[arg-type]
    copy = pickle.loads(pickle.dumps(teacher))
    assert copy.is_checked
    assert_equal_rows(ask(copy, _BATCH), expected)


class _Process:
    """The stand-in server in a process of its own, on one port."""

    def __init__(self, folder: str) -> None:
        # Holds the port, on which this socket does not listen: nobody else takes it while the server is dead.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port = self._place.getsockname()[1]
        self._command = [sys.executable, str(Path(stand_in_server.__file__)), folder, "--port", str(self.port)]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)

    def wait(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        self._place.close()


@pytest.fixture
def process(folder: str) -> Iterator[_Process]:
    running = _Process(folder)
    yield running
    running.kill()
    running.close()


@pytest.mark.slow
def test_a_killed_and_restarted_server_changes_no_number(process: _Process, vocabulary: CanonicalVocabulary) -> None:
    url = process.wait()
    teacher = _teacher(url, vocabulary)
    expected = ask(teacher, _BATCH)
    process.kill()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/models", timeout=5)
    process.start()  # is not waited for: the teacher does
    assert_equal_rows(ask(teacher, _BATCH), expected)
