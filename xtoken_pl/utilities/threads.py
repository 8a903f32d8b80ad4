"""Calls a function in threads that nobody has to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def call_in_threads(
    function: Callable[[T], R], items: Sequence[T], num_threads: int, abandoned: threading.Event
) -> list[R]:
    """Calls a function for each of some items, several at a time, and returns the results in order.

    After an error or an interrupt no call is waited for, and the end of the process does not wait either.

    Args:
        function: The function.
        items: Its arguments.
        num_threads: Largest number of calls at a time.
        abandoned: Event that is set after an error or an interrupt; no call begins once it is set. Calls that are under
            way may watch it, and end with :class:`~concurrent.futures.CancelledError`. Nested calls may share it.

    Raises:
        Exception: The first error of a call, other than that it was abandoned.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    ended: SimpleQueue[tuple[int, R | None, BaseException | None]] = SimpleQueue()
    for number in range(len(items)):
        waiting.put(number)

    def work() -> None:
        while True:
            try:
                number = waiting.get_nowait()
            except Empty:
                return
            try:
                if abandoned.is_set():
                    raise CancelledError
                ended.put((number, function(items[number]), None))
            except BaseException as error:
                ended.put((number, None, error))
                abandoned.set()

    results: dict[int, R] = {}
    try:
        for _ in range(min(num_threads, len(items))):
            threading.Thread(target=work, daemon=True).start()
        for _ in range(len(items)):
            number, result, error = ended.get()
            if error is None:
                results[number] = result  # type: ignore[assignment]
            elif not isinstance(error, CancelledError):
                raise error
        if len(results) < len(items):
            raise CancelledError
    except BaseException:
        abandoned.set()
        raise
    return [results[number] for number in range(len(items))]
