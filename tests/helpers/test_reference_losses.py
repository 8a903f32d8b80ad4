"""The references of the losses against values worked out by hand."""

# N_s/N_t rows (tokens), S spans, V_s/V_t vocabulary sizes (student/teacher)
import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from reference import Span
from reference_losses import (
    Divergence,
    Merge,
    cross_entropy,
    divergence,
    hybrid,
    merge_span,
    projection_divergence,
    rank_distance,
    token_divergence,
    uld,
)
from torch import Tensor

KINDS: tuple[Divergence, ...] = get_args(Divergence)
MERGES: tuple[Merge, ...] = get_args(Merge)
LOG_2 = math.log(2)
SPANS: list[Span] = [(0, 1, 0, 2), (1, 3, 2, 3), (3, 4, 3, 4), (4, 6, 4, 7)]  # over 6 student and 7 teacher rows


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_rows(*rows: list[float]) -> Tensor:
    """Log-probabilities of rows of probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


def random_sides(num_student: int, num_teacher: int, seed: int = 0) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Log-probabilities [6, V_s] and [7, V_t], and the labels [6] and [7] of both sides."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(6, num_student, dtype=torch.float64, generator=generator).log_softmax(dim=1)
    teacher = torch.randn(7, num_teacher, dtype=torch.float64, generator=generator).log_softmax(dim=1)
    student_labels = torch.randint(num_student, (6,), generator=generator)
    teacher_labels = torch.randint(num_teacher, (7,), generator=generator)
    return student, teacher, (student_labels, teacher_labels)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("forward", 0.25 * LOG_2 - 0.25),  # 0.5 log 2 - 0.25 log 2 - 1 + 0.75
        ("reverse", 0.25 * LOG_2 + 0.25),
        ("jensen_shannon", 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)),  # m = (0.375, 0.375, 0)
    ],
)
def test_divergence_known_value(kind: Divergence, expected: float) -> None:
    p, q = vector(0.5, 0.25, 0.0), vector(0.25, 0.5, 0.0)
    assert divergence(p, q, kind, torch.tensor(1.0), torch.tensor(0.75)).item() == pytest.approx(expected)


def test_divergence_directions_differ() -> None:
    p, q, one = vector(0.5, 0.5), vector(0.75, 0.25), torch.tensor(1.0)
    assert divergence(p, q, "forward", one, one).item() == pytest.approx(0.5 * math.log(4 / 3))
    assert divergence(p, q, "reverse", one, one).item() == pytest.approx(0.75 * math.log(3 / 2) - 0.25 * LOG_2)


def test_divergence_at_zeros() -> None:
    p, q, one = vector(1.0, 0.0), vector(0.5, 0.5), torch.tensor(1.0)
    assert divergence(p, q, "forward", one, one).item() == pytest.approx(LOG_2)
    assert divergence(p, q, "reverse", one, one).item() == math.inf
    assert divergence(q, p, "forward", one, one).item() == math.inf


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_of_equal_vectors_is_zero(kind: Divergence) -> None:
    p = vector(0.2, 0.0, 0.3)
    assert divergence(p, p, kind, p.sum(), p.sum()).item() == 0


def test_jensen_shannon_is_symmetric_and_at_most_log_2() -> None:
    one = torch.tensor(1.0)
    assert divergence(vector(1, 0), vector(0, 1), "jensen_shannon", one, one).item() == pytest.approx(LOG_2)
    for seed in range(10):
        rows = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 5
        p, q = rows.softmax(dim=1)
        there = divergence(p, q, "jensen_shannon", one, one).item()
        assert there == pytest.approx(divergence(q, p, "jensen_shannon", one, one).item())
        assert 0 < there < LOG_2


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        ([0.5, 0.2, 0.3], [0.6, 0.4], 0.4),  # 0.5, 0.3, 0.2 against 0.6, 0.4, 0
        ([0.1, 0.7, 0.2], [0.7, 0.2, 0.1], 0.0),
        ([], [0.5, 0.2], 0.7),
        ([0.5, 0.2], [], 0.7),
        ([], [], 0.0),
    ],
)
def test_rank_distance_known_value(p: list[float], q: list[float], expected: float) -> None:
    assert rank_distance(vector(*p), vector(*q)).item() == pytest.approx(expected)


def test_rank_distance_gradient_goes_to_the_sorted_entries() -> None:
    p = vector(0.1, 0.8).requires_grad_()
    rank_distance(p, vector(0.6, 0.3)).backward()
    assert p.grad is not None
    assert p.grad.tolist() == [-1.0, 1.0]  # 0.8 above 0.6, 0.1 below 0.3


def test_merge_span_known_values() -> None:
    log_probs, labels = log_rows([0.5, 0.5], [0.9, 0.1]), torch.tensor([1, 0])
    p_hat, c = merge_span(log_probs, labels, 0, 2, "chain_rule")
    assert p_hat.tolist() == pytest.approx([0.45, 0.45])
    assert c.item() == pytest.approx(0.9)
    p_hat, c = merge_span(log_probs, labels, 0, 2, "mean")
    assert p_hat.tolist() == pytest.approx([0.75, 0.25])  # √0.45 and √0.05 stand 3 to 1
    assert c.item() == 1


def test_hybrid_known_values() -> None:
    student = log_rows([0.25, 0.25, 0.5], [0.125, 0.375, 0.5])
    teacher = log_rows([0.25, 0.25, 0.5])
    labels = torch.tensor([0, 2]), torch.tensor([0])
    # one-to-one: 0.5 log(0.5 / 0.25), and (0.5, 0.25) against (0.25, 0.25)
    loss = hybrid(student, teacher, *labels, [(0, 1, 0, 1)], [(0, 2)], [1, 2], [0, 1], kl_weight=2.0, uld_weight=3.0)
    assert loss.tolist() == pytest.approx([2 * 0.5 * LOG_2 + 3 * 0.25])
    # two-to-one, c_S = 0.5: student (0.125, 0.125, 0.25), totals 1 and 0.5
    loss = hybrid(student, teacher, *labels, [(0, 2, 0, 1)], [(0, 2)], [1, 2], [0, 1])
    assert loss.tolist() == pytest.approx([0.5 * math.log(4) - 1 + 0.5 + 0.125])
    loss = hybrid(student, teacher, *labels, [(0, 2, 0, 1)], [(0, 2)], [1, 2], [0, 1], kind="reverse")
    assert loss.tolist() == pytest.approx([0.125 * math.log(1 / 4) - 0.5 + 1 + 0.125])


def test_hybrid_known_value_of_mean() -> None:
    student, teacher = log_rows([0.5, 0.5], [0.9, 0.1]), log_rows([0.25, 0.25, 0.5])
    labels = torch.tensor([0, 0]), torch.tensor([0])
    # student (0.75, 0.25); the teacher's 0.5 is common, its 0.25 and 0.25 stand against 0.25 and nothing
    loss = hybrid(student, teacher, *labels, [(0, 2, 0, 1)], [(0, 2)], [1], [0, 1], merge="mean")
    assert loss.tolist() == pytest.approx([0.5 * math.log(2 / 3) + 0.25])


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("kind", KINDS)
def test_hybrid_with_everything_common_equals_token_divergence(merge: Merge, kind: Divergence) -> None:
    student, teacher, labels = random_sides(5, 5)
    pairs = [(v, v) for v in range(5)]
    expected = token_divergence(student, teacher, *labels, SPANS, merge=merge, kind=kind)
    actual = hybrid(student, teacher, *labels, SPANS, pairs, [], [], merge=merge, kind=kind)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    assert (expected > 0).all()


@pytest.mark.parametrize("merge", MERGES)
def test_hybrid_with_nothing_common_equals_uld(merge: Merge) -> None:
    student, teacher, labels = random_sides(5, 7)
    loss = hybrid(student, teacher, *labels, SPANS, [], range(5), range(7), kl_weight=0.0, merge=merge)
    torch.testing.assert_close(loss, uld(student, teacher, *labels, SPANS, merge=merge), rtol=0, atol=1e-12)


def test_hybrid_pushes_uncommon_student_logits_down() -> None:
    """Proposition 1: ∂L_common/∂z_j = p_S[j]·Σ_{t∈C_T} p_T[t] for every uncommon student token j."""
    logits = vector(0.3, -1.0, 0.7, 0.1).requires_grad_()
    teacher = log_rows([0.1, 0.2, 0.3, 0.4])
    labels = torch.tensor([0])
    pairs = [(0, 3), (2, 1)]
    student = logits.log_softmax(dim=0)[None]
    hybrid(student, teacher, labels, labels, [(0, 1, 0, 1)], pairs, [1, 3], [0, 2], uld_weight=0.0).sum().backward()
    p_student = logits.detach().softmax(dim=0)
    assert logits.grad is not None
    assert logits.grad[[1, 3]].tolist() == pytest.approx((0.6 * p_student[[1, 3]]).tolist())


def test_uld_known_values() -> None:
    student, teacher = log_rows([0.25, 0.75]), log_rows([0.5, 0.5], [0.9, 0.1])
    labels = torch.tensor([0]), torch.tensor([1, 0])
    spans: list[Span] = [(0, 1, 0, 2)]
    assert uld(student, teacher, *labels, spans, "chain_rule").tolist() == pytest.approx([0.3 + 0.2])  # (0.45, 0.45)
    assert uld(student, teacher, *labels, spans, "mean").tolist() == pytest.approx([0.0], abs=1e-12)  # (0.75, 0.25)


PROJECTION = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)


def test_projection_divergence_known_values() -> None:
    student = log_rows([0.25, 0.5, 0.25], [0.5, 0.25, 0.25])  # projected: (0.5, 0.25) and (0.625, 0.125)
    teacher = log_rows([0.25, 0.5, 0.25])
    labels = torch.tensor([0, 0]), torch.tensor([0])
    one: list[Span] = [(0, 1, 0, 1)]
    two: list[Span] = [(0, 2, 0, 1)]
    loss = projection_divergence(student, teacher, *labels, one, PROJECTION, "chain_rule", "forward")
    assert loss.tolist() == pytest.approx([0.25 * LOG_2])
    # c_S = 0.5: (0.25, 0.125), totals 0.75 and 0.375
    loss = projection_divergence(student, teacher, *labels, two, PROJECTION, "chain_rule", "forward")
    assert loss.tolist() == pytest.approx([0.5 * math.log(4) - 0.375])
    loss = projection_divergence(student, teacher, *labels, two, PROJECTION, "chain_rule", "reverse")
    assert loss.tolist() == pytest.approx([0.125 * math.log(1 / 4) + 0.375])
    # (0.5625, 0.1875) on average, renormalized (3/4, 1/4), against (1/3, 2/3)
    loss = projection_divergence(student, teacher, *labels, two, PROJECTION, "mean", "forward")
    assert loss.tolist() == pytest.approx([math.log(4 / 9) / 3 + math.log(8 / 3) * 2 / 3])
    # teacher rows whose logarithms average to (0.6, 0.2, 0), renormalized (3/4, 1/4): the two sides agree
    teacher = log_rows([0.4, 0.4, 0.2], [0.9, 0.1, 0.0])
    loss = projection_divergence(student, teacher, labels[0], labels[0], [(0, 2, 0, 2)], PROJECTION, "mean", "forward")
    assert loss.tolist() == pytest.approx([0.0], abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_projection_divergence_of_the_identity_equals_token_divergence(kind: Divergence) -> None:
    student, teacher, labels = random_sides(5, 5)
    actual = projection_divergence(student, teacher, *labels, SPANS, torch.eye(5), kind=kind)
    torch.testing.assert_close(
        actual, token_divergence(student, teacher, *labels, SPANS, kind=kind), rtol=0, atol=1e-12
    )


def test_token_divergence_known_values() -> None:
    student, teacher = log_rows([0.25, 0.75]), log_rows([0.5, 0.5], [0.9, 0.1])
    labels = torch.tensor([0]), torch.tensor([1, 0])
    spans: list[Span] = [(0, 1, 0, 1), (0, 1, 0, 2)]
    one_to_one = 0.5 * LOG_2 + 0.5 * math.log(2 / 3)
    one_to_two = 0.9 * one_to_one + 0.9 * math.log(0.9) - 0.9 + 1  # c_T·KL + c_T·log(c_T/c_S) - c_T + c_S
    assert token_divergence(student, teacher, *labels, spans).tolist() == pytest.approx([one_to_one, one_to_two])
    means = [one_to_one, 0.75 * math.log(3) + 0.25 * math.log(1 / 3)]  # (0.75, 0.25) against (0.25, 0.75)
    assert token_divergence(student, teacher, *labels, spans, "mean").tolist() == pytest.approx(means)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(merge: Merge, kind: Divergence) -> None:
    student, teacher, labels = random_sides(4, 4)
    logits = student.clone().requires_grad_()
    projection = torch.tensor([[1, 0, 0, 0], [0, 0.9, 0.1, 0], [0, 0, 0, 0], [0, 0.5, 0, 0.5]]).double()
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda log_probs: hybrid(
            log_probs, teacher, *labels, SPANS, [(0, 2), (3, 1)], [1, 2], [0, 3], merge=merge, kind=kind
        ),
        lambda log_probs: uld(log_probs, teacher, *labels, SPANS, merge),
        lambda log_probs: projection_divergence(log_probs, teacher, *labels, SPANS, projection, merge, kind),
        lambda log_probs: token_divergence(log_probs, teacher, *labels, SPANS, merge, kind),
    ]
    for loss in losses:
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x.log_softmax(dim=1)), logits)


@pytest.mark.parametrize("loss", [uld, token_divergence])
def test_no_spans_give_no_losses(loss: Callable[..., Tensor]) -> None:
    student, teacher, labels = random_sides(4, 4)
    assert loss(student, teacher, *labels, []).shape == (0,)


def test_cross_entropy_is_minus_the_log_probability_of_the_label() -> None:
    losses = cross_entropy(log_rows([0.25, 0.75], [0.1, 0.9]), torch.tensor([0, 1]))
    assert losses.tolist() == pytest.approx([math.log(4), -math.log(0.9)])
