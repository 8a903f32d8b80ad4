"""The rows of a batch are shared out whole, evenly, and without overlap."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import LetterRows
from places import Place, alone_in_groups

from xtoken_pl import TokenKL
from xtoken_pl.batch import RowCuts
from xtoken_pl.losses import SpanBlock, SpanScores
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.processes import data_share, gather_shares


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


class SilentWithoutSpans(TokenKL):
    """Leaves a score out where there is nothing to score."""

    def forward(self, block: SpanBlock) -> SpanScores:
        scores = super().forward(block)
        return scores if len(scores.loss) else scores._replace(agreement=None)


def test_a_loss_that_scores_an_empty_share_otherwise_is_refused_in_all_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The vectors that processes add up would differ in length. Known from the first batch on, with spans in each."""
    alone_in_groups(monkeypatch)
    make = LetterRows(same_vocabulary=True)
    loss = SilentWithoutSpans()
    make.bind(loss)
    rows = make(loss, "many", 0)
    rows.evaluate(loss.train(), rows.student, group=Place(0, 2))  # in training it has no such score anyway
    for rank in (0, 1):
        with pytest.raises(UserError, match=r"'t' returns .*agreement torch\.\w+ and [^;]*mass torch\.float64; re"):
            rows.evaluate(loss.eval(), rows.student, group=Place(rank, 2))


def test_values_of_one_process_of_each_group_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four processes, two by two in groups: those of the second are the values 2 and 3."""
    monkeypatch.setattr("xtoken_pl.utilities.processes.gather", lambda own: [0, 1, 2, 3])
    shared = {"rank": 1, "num_replicas": 2}
    trainer = cast(Any, SimpleNamespace(distributed_sampler_kwargs=shared))
    assert gather_shares(3, trainer) == [0, 2]
    assert gather_shares(3, cast(Any, SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 4}))) == [0, 1, 2, 3]
    assert data_share(trainer) == (1, 2)
    assert data_share(None) == (0, 1)
