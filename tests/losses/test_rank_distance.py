"""The rank distance, and the sorts that it is made of."""

from __future__ import annotations

import math

import pytest
import reference_losses as reference
import torch
from fake_vocabularies import V_S, V_T, bound
from span_rows import LABELS, NUM_STUDENT_ROWS, NUM_TEACHER_ROWS, block_of, random_rows

from xtoken_pl import ULD
from xtoken_pl.losses.uld import rank_distance, sort_rows, sort_values


@pytest.mark.parametrize(("num_student", "num_teacher"), [(3, 8), (8, 3), (5, 5), (0, 4), (4, 0)])
def test_rank_distance_agrees_with_the_slow_reference_whichever_side_is_longer(
    num_student: int, num_teacher: int
) -> None:
    student, teacher = random_rows(6, num_student, 1).exp(), random_rows(6, num_teacher, 2).exp()
    expected = torch.stack([reference.rank_distance(*rows) for rows in zip(student, teacher, strict=True)])
    torch.testing.assert_close(rank_distance(student, teacher), expected, rtol=1e-12, atol=0)


def test_uld_does_not_see_which_token_has_which_probability() -> None:
    student, teacher = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    singles = [(row, row + 1, row, row + 1) for row in range(NUM_TEACHER_ROWS)]
    shuffled = teacher[:, torch.randperm(V_T, generator=torch.Generator().manual_seed(0))]
    first = bound(ULD())(block_of(student, teacher, LABELS, singles)).loss
    second = bound(ULD())(block_of(student, shuffled, LABELS, singles)).loss
    torch.testing.assert_close(first, second, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("num_rows", [1, 5, 300])
def test_rows_are_sorted_as_by_comparison(num_rows: int, scale: float) -> None:
    rows = (scale * random_rows(num_rows, 700, 0, torch.float32)).softmax(-1)
    rows[:, ::50] = 0.0  # ties
    rows[0, 3] = torch.finfo(torch.float32).tiny / 8
    values, places = sort_rows(rows)
    assert torch.equal(values, rows.sort(dim=-1).values)
    assert torch.equal(rows.gather(1, places), values)
    assert torch.equal(places.sort(dim=-1).values, torch.arange(700).expand(num_rows, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_values_are_sorted_in_any_precision_and_the_rows_stay_as_they_were(dtype: torch.dtype) -> None:
    rows = random_rows(7, 300, 0, torch.float64).to(dtype)
    before = rows.clone()
    assert torch.equal(sort_values(rows), before.sort(dim=-1).values)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
def test_a_row_that_is_no_number_stays_alone(value: float) -> None:
    rows = random_rows(4, 300, 0, torch.float32).softmax(-1)
    rows[2] = math.copysign(value, value)
    other = random_rows(4, 200, 1, torch.float32).softmax(-1)
    distance = rank_distance(rows, other)
    whole = [0, 1, 3]
    torch.testing.assert_close(distance[whole], rank_distance(rows[whole], other[whole]))
    assert not torch.isfinite(distance[2])
    values, places = sort_rows(torch.full((2, 3), -0.0))
    assert torch.equal(places, torch.arange(3).expand(2, 3))
    assert not values.any()
