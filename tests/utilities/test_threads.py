"""Calls in threads end with their first error."""

from __future__ import annotations

import threading

import pytest

from xtoken_pl.utilities.threads import call_in_threads


def test_results_are_in_the_order_of_the_items() -> None:
    assert call_in_threads(lambda item: item * 2, list(range(50)), 4, threading.Event()) == list(range(0, 100, 2))
    assert call_in_threads(lambda item: item, [], 4, threading.Event()) == []


def test_no_call_begins_after_an_error() -> None:
    for _ in range(50):
        begun: list[int] = []

        def fail(item: int, begun: list[int] = begun) -> None:
            begun.append(item)
            raise ValueError(item)

        with pytest.raises(ValueError, match="0"):
            call_in_threads(fail, [0, 1, 2], 1, threading.Event())
        assert begun == [0]
