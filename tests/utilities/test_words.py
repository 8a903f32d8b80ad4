"""Words of messages."""

from __future__ import annotations

import pytest

from xtoken_pl.utilities.words import first_of, percent


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], ""), (["b"], "b"), ({"c", "a", "b"}, "a, b, c"), ("edcba", "a, b, c and 2 more")],
)
def test_a_list_in_a_message_is_sorted_and_counts_what_it_does_not_show(names: list[str], expected: str) -> None:
    assert first_of(names) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, "0.0%"), (0.0009, "less than 0.1%"), (0.001, "0.1%"), (0.0349, "3.5%"), (1.0, "100.0%")],
)
def test_a_small_share_is_not_written_as_none(share: float, expected: str) -> None:
    assert percent(share) == expected
