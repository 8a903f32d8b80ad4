"""The products of W with rows, and its algebra."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from projections import Built, sparse
from reference import dense_projection
from torch import Tensor

from xtoken_pl.projection import Projection
from xtoken_pl.projection.sparse import SparseProduct


def dense(projection: Projection) -> Tensor:
    """[V_s, V_t], float64."""
    matrix = torch.zeros(projection.num_student, projection.num_teacher, dtype=torch.float64)
    for s in range(projection.num_student):
        for t, weight in zip(projection.indices[s].tolist(), projection.weights[s].tolist(), strict=True):
            matrix[s, t] += weight
    return matrix


@st.composite
def projections(draw: st.DrawFn) -> Projection:
    num_teacher = draw(st.integers(1, 7))
    ids = st.lists(st.integers(0, num_teacher - 1), max_size=4, unique=True)
    rows = []
    for tokens in draw(st.lists(ids, min_size=1, max_size=8)):
        weights = [draw(st.floats(0.01, 1.0)) for _ in tokens]
        rows.append({t: weight / sum(weights) for t, weight in zip(tokens, weights, strict=True)})
    return sparse(rows, num_teacher)


@given(projection=projections(), shape=st.lists(st.integers(0, 3), max_size=3), seed=st.integers(0, 99))
def test_application_is_the_product_with_the_dense_matrix(projection: Projection, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student_rows = torch.randn(*shape, projection.num_student, dtype=torch.float64, generator=generator)
    teacher_rows = torch.randn(*shape, projection.num_teacher, dtype=torch.float64, generator=generator)
    to_teacher, to_student = projection.to_teacher(student_rows), projection.to_student(teacher_rows)
    matrix = dense(projection)
    torch.testing.assert_close(to_teacher, student_rows @ matrix, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(to_student, teacher_rows @ matrix.T, rtol=1e-12, atol=1e-12)
    # <Wᵀ p, q> = <p, W q>
    torch.testing.assert_close(
        (to_teacher * teacher_rows).sum(), (student_rows * to_student).sum(), rtol=1e-12, atol=1e-12
    )


def test_application_of_a_whole_vocabulary_is_the_product_with_the_dense_matrix(small_pair: Built) -> None:
    generator = torch.Generator().manual_seed(0)
    student_rows, teacher_rows = (torch.rand(2, 3, 2000, dtype=torch.float64, generator=generator) for _ in range(2))
    matrix = dense_projection(small_pair.rows(), 2000, 2000)
    to_teacher, to_student = (
        small_pair.projection.to_teacher(student_rows),
        small_pair.projection.to_student(teacher_rows),
    )
    torch.testing.assert_close(to_teacher, student_rows @ matrix, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(to_student, teacher_rows @ matrix.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["llama3_from_qwen3", "llama3_from_o200k"])
def test_rows_sum_to_one_or_zero(request: pytest.FixtureRequest, name: str) -> None:
    projection: Projection = request.getfixturevalue(name).projection
    sums = projection.weights.double().sum(dim=1)
    is_zero = sums == 0
    torch.testing.assert_close(sums[~is_zero], torch.ones_like(sums[~is_zero]), rtol=0, atol=1e-6)
    assert int(is_zero.sum()) == projection.counts.zero > 0


@pytest.mark.parametrize("name", ["llama3_from_qwen3", "llama3_from_o200k"])
def test_a_projected_distribution_keeps_its_mass_but_for_the_zero_rows(
    request: pytest.FixtureRequest, name: str
) -> None:
    projection: Projection = request.getfixturevalue(name).projection
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, projection.num_student, dtype=torch.float64, generator=generator)
    probabilities = logits.softmax(dim=-1)
    projected = projection.to_teacher(probabilities)
    lost = probabilities[:, projection.weights.sum(dim=1) == 0].sum(dim=-1)
    assert (projected >= 0).all()
    assert (lost > 1e-4).all()
    torch.testing.assert_close(projected.sum(dim=-1), 1 - lost, rtol=0, atol=1e-7)


def test_the_gradient_of_a_projection_is_right(small: Projection) -> None:
    generator = torch.Generator().manual_seed(0)
    student_rows = torch.rand(2, 2, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher_rows = torch.rand(3, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(small.to_teacher, student_rows)
    assert torch.autograd.gradgradcheck(small.to_teacher, student_rows)
    assert torch.autograd.gradcheck(small.to_student, teacher_rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_product_with_default_weights_equals_one_with_the_same_weights_given(
    small: Projection, dtype: torch.dtype
) -> None:
    student_ids, teacher_ids, weights = small.entries()
    product = SparseProduct(student_ids, teacher_ids, small.num_student, small.num_teacher, weights)
    rows = torch.rand(3, 5, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    own, given = product(rows), product(rows, weights)
    assert own.any()
    assert torch.equal(own, given)
    own_gradient, given_gradient = (torch.autograd.grad(out.square().sum(), rows)[0] for out in (own, given))
    assert torch.equal(own_gradient, given_gradient)


def test_only_learned_entries_get_a_gradient(small: Projection) -> None:
    student_ids, teacher_ids, weights = small.entries()
    product = SparseProduct(student_ids, teacher_ids, small.num_student, small.num_teacher, weights)
    rows = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    given, learned = weights.double().requires_grad_(), torch.tensor([3, 1])
    (to_rows, of_all), (to_rows_again, of_learned) = (
        torch.autograd.grad(product(rows, given, entries).square().sum(), (rows, given)) for entries in (None, learned)
    )
    assert torch.equal(to_rows, to_rows_again)
    assert of_all.all()
    assert torch.equal(of_learned, torch.zeros_like(of_all).index_copy(0, learned, of_all[learned]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_application_keeps_the_dtype_and_the_leading_shape(small: Projection, dtype: torch.dtype) -> None:
    projected = small.to_teacher(torch.full((2, 1, 5), 0.2, dtype=dtype))
    assert projected.dtype == dtype
    assert projected.shape == (2, 1, 6)
    expected = torch.tensor([0.25, 0.02, 0.18, 0.35, 0.0, 0.0]).expand(2, 1, 6)
    torch.testing.assert_close(projected.float(), expected, rtol=0, atol=5e-3 if dtype == torch.bfloat16 else 1e-6)


def test_rows_of_another_vocabulary_are_refused(small: Projection) -> None:
    with pytest.raises(ValueError, match="must have 5 columns to be projected, got 6"):
        small.to_teacher(torch.ones(2, 6))
    with pytest.raises(ValueError, match="must have 6 columns to be projected, got 5"):
        small.to_student(torch.ones(2, 5))


def test_entries_are_the_nonzero_weights(small: Projection) -> None:
    entries = {(s, t): w for s, t, w in zip(*(part.tolist() for part in small.entries()), strict=True)}
    expected = {(0, 0): 1.0, (1, 2): 0.9, (1, 1): 0.1, (3, 3): 0.75, (3, 0): 0.25, (4, 3): 1.0}
    assert entries == pytest.approx(expected)
