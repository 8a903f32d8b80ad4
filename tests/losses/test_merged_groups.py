"""Rows cut to the teacher's k most probable tokens, and the divergence of groups that are merged."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from loss_cases import DIVERGENCES
from plain_divergences import PROBS, listed_divergence
from prefix_pairs import Pair
from small_models import packing_tokenizer, splitting_tokenizer
from torch import Tensor

from xtoken_pl.losses import Divergence
from xtoken_pl.losses.base import SideRows
from xtoken_pl.losses.group_divergence import ColumnSums, Groups, group_divergence
from xtoken_pl.losses.teacher_tokens import keep_tokens

every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def side(probs: Tensor, labels: list[int]) -> SideRows:
    each = torch.arange(len(labels))
    return SideRows(probs.log(), torch.tensor(labels), each, torch.ones_like(each), each)


def test_the_tail_is_shared_evenly_by_the_tokens_that_exist() -> None:
    probs = torch.tensor([[0.4, 0.01, 0.3, 0.2, 0.0, 0.09], [0.05, 0.1, 0.5, 0.3, 0.0, 0.05]], dtype=torch.float64)
    rows, kept = keep_tokens(side(probs, [1, 2]), 2)
    assert kept is not None
    expected = [[0.4, 0.01, 0.3, 0.145, 0.0, 0.145], [0.2 / 3, 0.2 / 3, 0.5, 0.3, 0.0, 0.2 / 3]]
    assert rows.log_probs.exp().tolist() == [pytest.approx(row, abs=1e-12) for row in expected]
    assert rows.log_probs[:, 4].tolist() == [-math.inf, -math.inf]
    assert kept.is_kept.tolist() == [[True, True, True, False, False, False], [False, False, True, True, False, False]]
    assert kept.num_others.tolist() == [2, 1]
    assert kept.has_tail.tolist() == [True, True]


def test_a_row_without_a_tail_stays_as_it_is_beside_others() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2, 0.0, 0.0], [0.3, 0.3, 0.2, 0.1, 0.1]], dtype=torch.float64)
    rows, kept = keep_tokens(side(probs, [2, 0]), 2)
    assert kept is not None
    assert torch.equal(rows.log_probs[0], probs[0].log())
    assert kept.has_tail.tolist() == [False, True]
    assert kept.is_kept[0].all()


def test_tokens_that_are_known_are_kept_and_a_place_without_a_token_keeps_none() -> None:
    """Token 3 is observed and as probable as token 2; the other tokens of both rows have even shares of the tail."""
    probs = torch.tensor([[0.4, 0.1, 0.2, 0.2, 0.1], [0.4, 0.1, 0.1, 0.3, 0.1]], dtype=torch.float64)
    known = replace(side(probs, [3, 3]), top_ids=torch.tensor([[0, 2], [0, 5]], dtype=torch.int32))
    rows, kept = keep_tokens(known, 2)
    assert kept is not None
    torch.testing.assert_close(rows.log_probs, probs.log())
    assert kept.is_kept.tolist() == [[True, False, True, True, False], [True, False, False, True, False]]
    assert kept.num_others.tolist() == [2, 1]
    assert keep_tokens(known, 1)[1].is_kept.sum(1).tolist() == [2, 2]  # type: ignore[union-attr]


@every_divergence
def test_the_token_of_id_0_is_kept_like_any_other(divergence: Divergence) -> None:
    """As the most probable token of every row it keeps the group of what leaves the observed path at every level."""
    text = " 1234 + 56 = 1290; naive unhappiness (17%)"
    pair = Pair.of(packing_tokenizer(), splitting_tokenizer(), text, divergence=divergence, teacher_top_k=1)
    student, teacher = pair.rows()
    teacher[:, 0] = 4.0
    teacher = teacher.log_softmax(-1)
    assert (teacher.argmax(-1) == 0).all()
    nats = group_divergence(student, *pair.groups(teacher), divergence=divergence)
    expected = pair.slow_nats(student, teacher)
    assert nats[list(expected)].tolist() == pytest.approx(list(expected.values()), abs=1e-10)


@pytest.mark.parametrize("top_k", [None, 3, 9])
def test_no_limit_keeps_the_rows_themselves(top_k: int | None) -> None:
    rows = side(torch.tensor([[0.5, 0.3, 0.2]]), [0])
    assert keep_tokens(rows, top_k) == (rows, None)


# Student tokens 0 to 6: 0 and 1 are column 0, 2 and 3 column 1, 4 column 2, 5 column 3, 6 none; branches of row 0 take
# 4 and 5.

COLUMNS = torch.tensor([0, 0, 1, 1, 2, 3, -1])


def groups(merged: tuple[list[list[bool]], list[bool]]) -> Groups:
    """Masses that sum to 0.8 and 0.5; column 3 of row 1 cannot be written."""
    return Groups(
        row=torch.tensor([0, 1]),
        column_mass=torch.tensor([[0.3, 0.3, 0.0, 0.0], [0.2, 0.2, 0.1, 0.0]], dtype=torch.float64),
        sums=ColumnSums(COLUMNS),
        branch_mass=torch.tensor([0.15, 0.05], dtype=torch.float64),
        branch_position=torch.tensor([0, 0]),
        member_branch=torch.tensor([0, 1]),
        member=torch.tensor([4, 5]),
        merged=(torch.tensor(merged[0]), torch.tensor(merged[1])),
    )


#: Column 1 and branch 1 of row 0, columns 1 and 2 of row 1.
MERGED = groups(([[False, True, False, False], [False, True, True, False]], [False, True]))


@every_divergence
def test_merged_groups_count_as_one(divergence: Divergence) -> None:
    covered = [0.8, 0.6]
    teacher = [[0.3 / 0.8, 0.35 / 0.8, 0.15 / 0.8], [0.4, 0.6]]
    student = [[0.3 / 0.8, 0.3 / 0.8, 0.2 / 0.8], [0.2 / 0.6, 0.4 / 0.6]]
    expected = [
        listed_divergence(q, p, divergence) - math.log(mass)
        for q, p, mass in zip(teacher, student, covered, strict=True)
    ]
    assert group_divergence(PROBS.log(), MERGED, divergence=divergence).tolist() == pytest.approx(expected)
    assert torch.autograd.gradcheck(
        lambda rows: group_divergence(rows, MERGED, divergence=divergence), PROBS.log().requires_grad_()
    )


@every_divergence
def test_a_single_merged_group_changes_nothing(divergence: Divergence) -> None:
    alone = groups(([[False, True, False, False], [False, False, True, False]], [False, False]))
    ours, theirs = (
        group_divergence(PROBS.log(), each, divergence=divergence) for each in (alone, replace(alone, merged=None))
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


@every_divergence
@pytest.mark.parametrize("teacher_rest", [0.5, 1e-20, 1e-36])
@pytest.mark.parametrize("student_rest", [0.5, 1e-20, 1e-36, 0.0])
def test_masses_that_underflow_count_as_those_of_one_group(
    divergence: Divergence, teacher_rest: float, student_rest: float
) -> None:
    """In single precision: value and gradient are those of a column that holds all the tokens."""
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    probs = torch.cat((torch.tensor([1 - student_rest]), student_rest * shares))[None]
    none = torch.zeros(0, dtype=torch.int64)

    def scored(column: list[int], masses: list[float], merged: list[bool] | None) -> tuple[Tensor, Tensor]:
        branches = none.float(), none, none, none
        part = Groups(none.new_zeros(1), torch.tensor([masses]), ColumnSums(torch.tensor(column)), *branches)
        if merged is not None:
            part = replace(part, merged=(torch.tensor([merged]), none.bool()))
        leaf = probs.log().requires_grad_()
        nats = group_divergence(leaf, part, divergence=divergence)
        return nats.detach(), torch.autograd.grad(nats.sum(), leaf)[0]

    each = [1 - teacher_rest, *[teacher_rest / 4] * 4]
    ours = scored([0, 1, 2, 3, 4], each, [False, True, True, True, True])
    theirs = scored([0, 1, 1, 1, 1], [1 - teacher_rest, teacher_rest], None)
    assert ours[1].isfinite().all()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
