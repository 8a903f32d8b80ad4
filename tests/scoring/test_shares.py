"""The rows of a batch are shared out whole, evenly, and without overlap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtoken_pl.batch import RowCuts


def cuts_of(lengths: list[int], teacher: list[int]) -> RowCuts:
    """Cuts between spans of so many student and teacher rows."""
    spans = np.arange(len(lengths) + 1)
    student, other = (np.concatenate(([0], np.cumsum(sizes, dtype=int))) for sizes in (lengths, teacher))
    return RowCuts(student, {"t": spans}, {"t": other})


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=40), st.integers(1, 5))
def test_shares_are_all_rows_in_order(sizes: list[tuple[int, int]], num_shares: int) -> None:
    cuts = cuts_of([student for student, _ in sizes], [other for _, other in sizes])
    shares = [cuts.share(place, num_shares) for place in range(num_shares)]
    ends = [0, 0, 0]
    for share in shares:
        sides = (share.student, share.spans["t"], share.teacher["t"])
        assert [side[0] for side in sides] == ends
        ends = [side[-1] for side in sides]
    assert ends == [cuts.student[-1], cuts.spans["t"][-1], cuts.teacher["t"][-1]]


@pytest.mark.parametrize("num_shares", [2, 3, 4])
def test_shares_differ_by_less_than_two_spans(num_shares: int) -> None:
    cuts = cuts_of([1, 2, 3] * 30, [2, 1, 1] * 30)
    shares = [cuts.share(place, num_shares) for place in range(num_shares)]
    sizes = [int(np.ptp(share.student) + np.ptp(share.teacher["t"])) for share in shares]
    assert max(sizes) - min(sizes) <= 2 * 4  # the largest span has 3 + 1 rows


def test_a_share_without_rows_has_no_block() -> None:
    cuts = cuts_of([5], [4])
    blocks = [cuts.share(place, 3).blocks(100, 100) for place in range(3)]
    assert sorted(len(of_share) for of_share in blocks) == [0, 0, 1]


def test_blocks_of_a_share_have_the_rows_of_the_batch() -> None:
    cuts = cuts_of([1] * 10, [2] * 10)
    blocks = cuts.share(1, 2).blocks(3, 3)
    rows = np.concatenate([np.arange(10)[block.student_rows] for block in blocks])
    assert rows.tolist() == [5, 6, 7, 8, 9]
    assert [block.teacher_rows["t"] for block in blocks][-1].stop == 20
