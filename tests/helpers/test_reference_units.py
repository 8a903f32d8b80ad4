"""The slow references of SimCT, strict top-k, ALM and the prefix partition KL: published values, and cases by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from reference_units import Units, alm, prefix_partition, simct, strict_top_k
from test_reference_marginals import BREAD_LABELS, BREAD_TEACHER, DIVERGENCES, bread_student, log_rows
from torch import Tensor

from xtoken_pl.losses import Divergence

# The worked example of https://arxiv.org/abs/2609.34738, B.5: the text `Bread`, as Br, ead and as one token.
BREAD = Units(
    common=[(1, 3)],
    student_spelling={0: (0, 2), 1: (0, 3), 2: (0, 4), 3: (1,)},
    student_lengths=[2, 3, 3, 4, 3, 1],
    teacher_lengths=[5, 6, 5, 3],
    teacher_preferred=range(4),
)
BREAD_SPAN = [(0, 2, 0, 1)]


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_published_value_of_simct(factor: float) -> None:
    student = bread_student()
    student[:, :5] += math.log(factor)
    loss = simct(BREAD, student, BREAD_TEACHER, BREAD_LABELS, BREAD_SPAN)
    if factor == 1:
        assert loss.tolist() == pytest.approx([0.1062], abs=5e-5)
    scores = [0.2 * factor, *(factor * math.sqrt(x) for x in (0.1, 0.15, 0.05))]
    p, q = [score / sum(scores) for score in scores], [0.1, 0.4, 0.2, 0.3]
    assert loss.item() == pytest.approx(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def test_simct_without_the_path_compares_shared_tokens_and_the_observed_text() -> None:
    loss = simct(BREAD, bread_student(), BREAD_TEACHER, BREAD_LABELS, BREAD_SPAN, "observed", "forward")
    ours = 0.2 / (0.2 + math.sqrt(0.1))
    assert loss.item() == pytest.approx(0.2 * math.log(0.2 / ours) + 0.8 * math.log(0.8 / (1 - ours)))
    longer = replace(BREAD, student_lengths=[3, 3, 3, 4, 3, 1])  # as if a space were in front
    whole = simct(longer, bread_student(), BREAD_TEACHER, BREAD_LABELS, BREAD_SPAN, "path", "forward")
    assert whole.item() == pytest.approx(loss.item())


def test_simct_of_one_token_scores_what_the_other_side_spells_along_its_path() -> None:
    """Student Bread, Breads, Break, Cat as one token each; teacher Br, ead, eads, eak, Cat."""
    turned = Units(
        common=[(3, 1)],
        teacher_spelling=BREAD.student_spelling,
        student_lengths=BREAD.teacher_lengths,
        teacher_lengths=BREAD.student_lengths,
        student_preferred=range(4),
    )
    labels = BREAD_LABELS[1], BREAD_LABELS[0]
    loss = simct(turned, BREAD_TEACHER, bread_student(), labels, [(0, 1, 0, 2)], divergence="forward")
    assert loss.item() == pytest.approx(0.1062, abs=5e-5)  # the forward form, with the sides exchanged


def test_simct_takes_no_duplicate_and_no_common_token_as_a_unit() -> None:
    for changed in (replace(BREAD, teacher_preferred=[0, 2, 3]), replace(BREAD, common=[(1, 3), (5, 1)])):
        student, teacher = bread_student(), BREAD_TEACHER
        common = [math.exp(student[0, x]) for x, _ in changed.common]
        p = [*common, math.sqrt(0.1), math.sqrt(0.05)]
        q = [*(math.exp(teacher[0, y]) for _, y in changed.common), 0.4, 0.3]
        expected = sum(a / sum(p) * math.log(a / sum(p) * sum(q) / b) for a, b in zip(p, q, strict=True))
        assert simct(changed, student, teacher, BREAD_LABELS, BREAD_SPAN).item() == pytest.approx(expected)


COMMON = [(0, 1), (2, 0), (3, 2)]
ROWS = log_rows([0.4, 0.1, 0.2, 0.3]), log_rows([0.5, 0.2, 0.1, 0.2])


def test_strict_top_k_known_values() -> None:
    p, q = [4 / 9, 2 / 9, 3 / 9], [0.25, 0.625, 0.125]
    reverse = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert strict_top_k(COMMON, *ROWS, [(0, 1, 0, 1)]).tolist() == pytest.approx([reverse])
    # The two pairs of highest p: student tokens 0 and 3, teacher tokens 1 and 2.
    loss = strict_top_k(COMMON, *ROWS, [(0, 1, 0, 1)], 2, "forward")
    assert loss.item() == pytest.approx(2 / 3 * math.log(2 / 3 * 7 / 4) + 1 / 3 * math.log(1 / 3 * 7 / 3))
    loss = strict_top_k(COMMON, *ROWS, [(0, 1, 0, 1)], None, "forward", teacher_top_k=1)
    assert loss.item() == pytest.approx(0.625 * math.log(0.625 * 9 / 2) + 0.375 * math.log(0.375 * 9 / 7))
    assert strict_top_k(COMMON, *ROWS, [(0, 1, 0, 1)], 1).tolist() == [0.0]


def test_strict_top_k_of_spans_that_are_not_one_to_one_is_zero() -> None:
    student, teacher = (rows.expand(2, -1) for rows in ROWS)
    spans = [(0, 1, 0, 2), (0, 2, 0, 1), (0, 2, 0, 2)]
    assert strict_top_k(COMMON, student, teacher, spans).tolist() == [0.0, 0.0, 0.0]


def test_simct_of_one_to_one_spans_is_strict_top_k_of_all_common_tokens() -> None:
    ours = simct(Units(COMMON), *ROWS, ([1], [3]), [(0, 1, 0, 1)])
    assert ours.item() == pytest.approx(strict_top_k(COMMON, *ROWS, [(0, 1, 0, 1)]).item())


def test_alm_known_values() -> None:
    student, teacher = log_rows([0.5, 0.5], [0.5, 0.5]), log_rows([0.25, 0.75])
    labels, spans = ([0, 1], [0]), [(0, 2, 0, 1)]
    assert alm(student, teacher, labels, spans).tolist() == pytest.approx([0.0], abs=1e-12)  # 0.25 on both sides
    labels = [0, 1], [1]
    p, q = 0.25, 0.75
    expected = {
        "forward": q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)),
        "reverse": p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)),
    }
    for divergence, nats in expected.items():
        assert alm(student, teacher, labels, spans, 1.0, divergence).item() == pytest.approx(nats, abs=1e-5)
    p, q = 0.5, math.sqrt(0.75)
    warm = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert alm(student, teacher, labels, spans, 2.0).item() == pytest.approx(warm, abs=1e-5)
    limit = math.log(0.75 / 0.25) + math.log(0.75) * math.log(math.log(0.25) / math.log(0.75))
    assert 1e4 * alm(student, teacher, labels, spans, 1e4, epsilon=0.0).item() == pytest.approx(limit, rel=1e-3)


# Student Br, Cat, ead, eads, eak, special; the text is `Bread`.
PARTITION = replace(BREAD, common=[(1, 3), (5, 2)])


def test_prefix_partition_known_values() -> None:
    p, q = [0.5 * 0.2, 0.5 * 0.3, 0.5 * 0.1], [0.4, 0.2, 0.3]
    p, q = [*p, 1 - sum(p)], [*q, 1 - sum(q)]
    main = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    sides = bread_student(), BREAD_TEACHER, BREAD_LABELS, BREAD_SPAN
    assert prefix_partition(PARTITION, *sides, first_weight=0.0).item() == pytest.approx(main)
    # Pairs of C at the first rows: Cat and the special token against Break, with p = 0.2, 0.3 and q = 0.1, 0.3.
    first = 0.1 * math.log(0.1 / 0.2) + 0.3 * math.log(0.3 / 0.3) + 0.6 * math.log(0.6 / 0.5)
    assert prefix_partition(PARTITION, *sides, first_weight=0.5).item() == pytest.approx(main + 0.5 * first)
    # The teacher's most probable column is the rest.
    kept = 0.6 * math.log(0.6 / 0.5) + 0.4 * math.log(0.4 / 0.5)
    loss = prefix_partition(PARTITION, *sides, first_weight=0.5, teacher_top_k=1)
    assert loss.item() == pytest.approx(main + 0.5 * kept)


def test_prefix_partition_of_many_to_many_spans_is_alm_without_a_temperature() -> None:
    student, teacher = (rows.expand(2, -1) for rows in ROWS)
    labels, spans = ([0, 3], [1, 2]), [(0, 2, 0, 2)]
    for divergence in DIVERGENCES:
        ours = prefix_partition(Units([]), student, teacher, labels, spans, divergence)
        expected = alm(student, teacher, labels, spans, 1.0, divergence, epsilon=0.0)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_prefix_partition_of_a_one_to_one_span_compares_the_common_tokens_and_the_rest() -> None:
    pairs = [(0.4, 0.2), (0.2, 0.5), (0.3, 0.1), (0.1, 0.2)]
    loss = prefix_partition(Units(COMMON), *ROWS, ([1], [3]), [(0, 1, 0, 1)], "reverse")
    assert loss.item() == pytest.approx(sum(p * math.log(p / q) for p, q in pairs))
    # The most probable column is that of teacher token 0, whose pair is (2, 0).
    loss = prefix_partition(Units(COMMON), *ROWS, ([1], [3]), [(0, 1, 0, 1)], "reverse", teacher_top_k=1)
    assert loss.item() == pytest.approx(0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradients_are_those_of_finite_differences(divergence: Divergence) -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(3)).double().requires_grad_()
    sides = BREAD_TEACHER, BREAD_LABELS, BREAD_SPAN
    one = BREAD_TEACHER, [(1, 2, 0, 1)]
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda student: simct(PARTITION, student, *sides, divergence=divergence),
        lambda student: strict_top_k([(0, 0), (2, 1), (4, 3)], student, *one, 2, divergence),
        lambda student: alm(student, *sides, 5.0, divergence),
        lambda student: prefix_partition(PARTITION, student, *sides, divergence),
    ]
    for loss in losses:
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x.log_softmax(-1)), logits)


def test_no_spans_give_no_losses() -> None:
    sides = ROWS[0], ROWS[1]
    assert simct(Units(COMMON), *sides, ([], []), []).shape == (0,)
    assert strict_top_k(COMMON, *sides, []).shape == alm(*sides, ([], []), []).shape == (0,)
    assert prefix_partition(Units(COMMON), *sides, ([], []), []).shape == (0,)
