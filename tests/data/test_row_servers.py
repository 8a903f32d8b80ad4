"""Several servers are asked at the same time, and given up together."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from xtoken_pl.data.row_servers import add_served_rows
from xtoken_pl.utilities.errors import UserError

#: Seconds after which a server that is never given up ends, so that a failed test ends, too.
_GUARD = 60.0


class Waiting:
    """A server that does not answer until it is given up."""

    def __init__(self, begin: Callable[[], object] = lambda: None) -> None:
        self.begin = begin
        self.has_begun = threading.Event()
        self.ended: threading.Event = threading.Event()
        self.is_given_up = False

    def ask(self, batches: Sequence[Any], abandoned: threading.Event | None = None) -> list[Any]:
        assert abandoned is not None
        self.has_begun.set()
        self.begin()
        self.is_given_up = abandoned.wait(_GUARD)
        self.ended.set()
        return []


class Refusing:
    """A server that refuses once another one is being waited for."""

    def __init__(self, other: Waiting) -> None:
        self.other = other

    def ask(self, batches: Sequence[Any], abandoned: threading.Event | None = None) -> list[Any]:
        self.other.has_begun.wait(_GUARD)
        raise UserError("refused")


def _ask(servers: dict[str, Any]) -> None:
    view = SimpleNamespace(spans=[0], tokens=None, known=None)
    add_served_rows([SimpleNamespace(teachers=dict.fromkeys(servers, view))], servers)  # type: ignore[list-item]


def test_the_error_of_one_server_ends_waiting_for_another() -> None:
    slow = Waiting()
    with pytest.raises(UserError, match="refused"):
        _ask({"slow": slow, "refusing": Refusing(slow)})
    assert slow.ended.wait(_GUARD)
    assert slow.is_given_up


def test_an_interrupt_ends_waiting_for_a_server() -> None:
    slow = Waiting(lambda: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background processes may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            _ask({"slow": slow})
    finally:
        signal.signal(signal.SIGINT, before)
    assert slow.ended.wait(_GUARD)
    assert slow.is_given_up
