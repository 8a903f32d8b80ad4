"""Some columns of a product with W, and the sum of all others, against the product with the dense matrix."""

from __future__ import annotations

import pytest
import torch
from projections import Built, sparse
from torch import Tensor

from xtoken_pl.projection import Projection
from xtoken_pl.projection.kept_columns import KeptColumns

#: Rows of one token, of the same token, of several tokens, of none; tokens 4 and 5 have no row of their own.
ROWS = [
    {0: 1.0},
    {1: 0.5, 4: 0.3, 0: 0.2},
    {1: 1.0},
    {},
    {0: 1.0},
    {4: 0.75, 5: 0.25},
    {2: 1.0},
    {3: 1.0},
    {},
]
NUM_COLUMNS = 6


def made(projection: Projection) -> KeptColumns:
    source, target, weights = projection.entries()
    return KeptColumns(source, target, projection.num_student, projection.num_teacher, weights)


def slow(projection: Projection, rows: Tensor, kept: Tensor, weights: Tensor | None = None) -> Tensor:
    """Entry by entry, in the precision of the rows."""
    source, target, own = projection.entries()
    source, target, weights = source.tolist(), target.tolist(), own if weights is None else weights
    results = []
    for row, columns in zip(rows, kept.tolist(), strict=True):
        values = [rows.new_zeros(()) for _ in range(len(columns) + 1)]
        for s, t, weight in zip(source, target, weights, strict=True):
            place = columns.index(t) if t in columns else len(columns)
            values[place] = values[place] + weight * row[s]
        results.append(torch.stack(values))
    return torch.stack(results)


@pytest.mark.parametrize("k", range(1, NUM_COLUMNS + 1))
@pytest.mark.parametrize("rows_of", [ROWS, ROWS[:1] + [{t: 1.0} for t in range(1, 6)], [{0: 0.5, 1: 0.5}, {}]], ids=len)
def test_columns_and_the_sum_of_the_others(rows_of: list[dict[int, float]], k: int) -> None:
    num_columns = 1 + max(t for row in rows_of for t in row)
    projection = sparse(rows_of, num_columns)
    generator = torch.Generator().manual_seed(k)
    rows = torch.rand(4, len(rows_of), dtype=torch.float64, generator=generator, requires_grad=True)
    kept = torch.stack([torch.randperm(num_columns, generator=generator)[: min(k, num_columns)] for _ in range(4)])
    ours, theirs = made(projection)(rows.log(), kept), slow(projection, rows, kept)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    gradients = [torch.autograd.grad((weights * each).sum(), rows)[0] for each in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("k", range(1, NUM_COLUMNS + 1))
def test_given_weights_and_their_gradient(k: int) -> None:
    """Those of rows with several entries; all others are as they were."""
    projection, generator = sparse(ROWS, NUM_COLUMNS), torch.Generator().manual_seed(k)
    source, _, own = projection.entries()
    is_learned = source.bincount()[source] > 1
    given = torch.rand(len(own), dtype=torch.float64, generator=generator).where(is_learned, own).requires_grad_()
    rows = torch.rand(4, len(ROWS), dtype=torch.float64, generator=generator, requires_grad=True)
    kept = torch.stack([torch.randperm(NUM_COLUMNS, generator=generator)[:k] for _ in range(4)])
    ours, theirs = made(projection)(rows.log(), kept, given), slow(projection, rows, kept, given)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    of_each = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    (to_rows, to_given), (rows_expected, given_expected) = (
        torch.autograd.grad((of_each * each).sum(), (rows, given)) for each in (ours, theirs)
    )
    torch.testing.assert_close(to_rows, rows_expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(to_given[is_learned], given_expected[is_learned], rtol=1e-12, atol=1e-15)


def test_columns_of_whole_vocabularies(small_pair: Built) -> None:
    projection = small_pair.projection
    source, target, weights = projection.entries()
    reached, columns = target.unique(return_inverse=True)
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(5, projection.num_student, dtype=torch.float64, generator=generator, requires_grad=True)
    kept = torch.stack([torch.randperm(len(reached), generator=generator)[:50] for _ in range(5)])
    ours = KeptColumns(source, columns, projection.num_student, len(reached), weights)(rows.log(), kept)
    product = projection.to_teacher(rows).index_select(1, reached)
    others = product.scatter(1, kept, 0.0).sum(-1, keepdim=True)
    theirs = torch.cat((product.gather(1, kept), others), dim=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    of_each = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    gradients = [torch.autograd.grad((of_each * each).sum(), rows, retain_graph=True)[0] for each in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_a_sum_of_little_is_not_lost_beside_much() -> None:
    """In single precision: what is left of much is 0, not its rounding error, and so is its gradient."""
    projection = sparse([{0: 0.9009, 1: 0.0901, 2: 0.009}, {0: 1.0}, {3: 1.0}, {4: 0.5, 1: 0.5}], 5)
    rows = torch.tensor([[0.5, 0.5, 1e-9, 1e-9]], requires_grad=True)
    result = made(projection)(rows.log(), torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(result[0, -1].item(), 1.5e-9, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(result[0, -1], rows)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, 1.0, 0.5]]), rtol=1e-5, atol=0)


def test_gradcheck() -> None:
    module = made(sparse(ROWS, NUM_COLUMNS))
    rows = torch.rand(2, len(ROWS), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: module(rows.log(), torch.tensor([[5, 0], [1, 4]])), rows)
