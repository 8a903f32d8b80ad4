"""Words of messages."""

from __future__ import annotations

import pytest

from xtoken_pl.utilities.words import first_of


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], ""), (["b"], "b"), ({"c", "a", "b"}, "a, b, c"), ("edcba", "a, b, c and 2 more")],
)
def test_a_list_in_a_message_is_sorted_and_counts_what_it_does_not_show(names: list[str], expected: str) -> None:
    assert first_of(names) == expected
