"""The references themselves, against closed forms computed by hand and published figures."""

import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    cross_entropy,
    dense_projection,
    generalized_kl,
    projection_kl,
    projection_rows,
    spans_by_bytes,
    spans_by_dynamic_programme,
    token_kl,
)
from torch import Tensor

Merge = Literal["chain_rule", "mean"]


def log(*probabilities: list[float]) -> Tensor:
    """Log-probabilities [N, V] of rows of probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def cut(text: bytes, ends: set[int]) -> list[bytes]:
    """The text cut at the given byte offsets; those that are not inside the text are ignored."""
    offsets = [0, *sorted(end for end in ends if 0 < end < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(offsets) if end > start]


# Spans


@pytest.mark.parametrize(
    ("student", "teacher", "spans"),
    [
        ([b"a", b"b"], [b"a", b"b"], [(0, 1, 0, 1), (1, 2, 1, 2)]),
        ([b"abc", b"d"], [b"a", b"b", b"c", b"d"], [(0, 1, 0, 3), (1, 2, 3, 4)]),
        ([b"a", b"b", b"cd"], [b"ab", b"cd"], [(0, 2, 0, 1), (2, 3, 1, 2)]),
        ([b"ab", b"c"], [b"a", b"bc"], [(0, 2, 0, 2)]),
        ([b"\xc3", b"\xa9"], [b"\xc3\xa9"], [(0, 2, 0, 1)]),
        ([], [], []),
    ],
)
def test_spans_end_where_both_sides_end_a_token(
    student: list[bytes], teacher: list[bytes], spans: list[tuple[int, int, int, int]]
) -> None:
    assert spans_by_bytes(student, teacher) == spans


@given(st.text(max_size=12), st.sets(st.integers(1, 40)), st.sets(st.integers(1, 40)))
def test_byte_spans_are_the_pieces_of_the_text_cut_at_the_common_ends(
    text: str, student_ends: set[int], teacher_ends: set[int]
) -> None:
    data = text.encode()
    student, teacher = cut(data, student_ends), cut(data, teacher_ends)
    spans = spans_by_bytes(student, teacher)
    pieces = cut(data, student_ends & teacher_ends)
    assert [b"".join(student[span[0] : span[1]]) for span in spans] == pieces
    assert [b"".join(teacher[span[2] : span[3]]) for span in spans] == pieces


def test_byte_spans_of_different_texts_are_refused() -> None:
    with pytest.raises(AssertionError, match="same bytes"):
        spans_by_bytes([b"a"], [b"b"])


@pytest.mark.parametrize(
    ("student", "teacher", "score", "spans"),
    [
        ([b"a", b"b"], [b"a", b"b"], 6.0, [(0, 1, 0, 1), (1, 2, 1, 2)]),
        ([b"abc"], [b"a", b"b", b"c"], 4.5, [(0, 1, 0, 3)]),
        ([b"ab", b"c", b"d"], [b"abcd"], 4.5, [(0, 3, 0, 1)]),
        ([b"x"], [b"y"], -3.0, []),
        ([b"ab", b"c"], [b"a", b"bc"], -6.0, []),  # many-to-many is no move
        ([b"<bos>", b"a", b"bc"], [b"a", b"b", b"c"], 4.5, [(1, 2, 0, 1), (2, 3, 1, 3)]),
        ([b"a", b"bc"], [b"a", b"x", b"b", b"c"], 4.5, [(0, 1, 0, 1), (1, 2, 2, 4)]),
        ([b"a", b"b"], [], -3.0, []),
        ([], [], 0.0, []),
    ],
)
def test_dynamic_programme_scores_and_spans(
    student: list[bytes], teacher: list[bytes], score: float, spans: list[tuple[int, int, int, int]]
) -> None:
    assert spans_by_dynamic_programme(student, teacher) == (score, spans)
    mirrored = [(span[2], span[3], span[0], span[1]) for span in spans]
    assert spans_by_dynamic_programme(teacher, student) == (score, mirrored)


def test_dynamic_programme_joins_at_most_max_span_tokens() -> None:
    pieces = [b"a", b"b", b"c", b"d", b"e"]
    assert spans_by_dynamic_programme([b"abcde"], pieces) == (-9.0, [])
    assert spans_by_dynamic_programme([b"abcde"], pieces, max_span=5) == (7.5, [(0, 1, 0, 5)])


def test_dynamic_programme_breaks_a_tie_by_the_latest_match() -> None:
    assert spans_by_dynamic_programme([b"a"], [b"a", b"a"]) == (1.5, [(0, 1, 1, 2)])  # as much as (0, 1, 0, 1)


# The projection


def rows_of(
    student: list[bytes | None],
    teacher: list[bytes | None],
    encoded: list[int] | None,
    max_tokens: int = 4,
    top: int = 4,
) -> dict[int, dict[int, float]]:
    """Rows of tokens without roles, every encoded token being `encoded`."""
    return projection_rows(student, teacher, lambda _: encoded, {}, {}, max_tokens=max_tokens, top=top)


@pytest.mark.parametrize(
    "published",
    [[1.0], [0.909, 0.091], [0.9009, 0.0901, 0.0090], [0.9000, 0.0900, 0.0090, 0.0009]],
)
def test_multi_token_rows_have_the_published_weights(published: list[float]) -> None:
    row = rows_of([b"x"], [b"a", b"b", b"c", b"d"], list(range(len(published))))[0]
    weights = [row[t] for t in range(len(published))]
    assert len(row) == len(published)
    assert weights == pytest.approx(published, abs=1e-4)  # printed figures, some of them cut and not rounded
    assert sum(weights) == pytest.approx(1.0)
    assert all(weight == pytest.approx(10 * following) for weight, following in pairwise(weights))


@pytest.mark.parametrize("encoded", [None, [], [0, 1, 2, 3, 0]])
def test_a_token_the_teacher_cannot_spell_in_max_tokens_has_no_row(encoded: list[int] | None) -> None:
    assert rows_of([b"x"], [b"a", b"b", b"c", b"d"], encoded) == {}


def test_duplicates_in_a_row_add_up_before_the_row_keeps_its_top() -> None:
    # 1, 0.1, 0.01, 0.001, 0.0001 times beta on teacher tokens 0, 1, 0, 2, 3: 1.01, 0.1, 0.001, 0.0001
    row = rows_of([b"x"], [b"a", b"b", b"c", b"d"], [0, 1, 0, 2, 3], max_tokens=5, top=3)[0]
    assert row == pytest.approx({0: 1.01 / 1.111, 1: 0.1 / 1.111, 2: 0.001 / 1.111})


def test_equal_bytes_take_the_lowest_teacher_id_and_ignore_the_encoder() -> None:
    assert rows_of([b"b"], [b"a", b"b", b"b"], [0, 0]) == {0: {1: 1.0}}


def test_special_tokens_match_by_role_only() -> None:
    student: list[bytes | None] = [None, None, None]
    teacher: list[bytes | None] = [None, None, b"<s>"]
    rows = projection_rows(student, teacher, lambda _: [2], {0: "bos", 1: "pad"}, {0: "eos", 1: "bos"})
    assert rows == {0: {1: 1.0}}  # no counterpart for pad, none for the special token without a role


def test_dense_projection_places_every_weight() -> None:
    dense = dense_projection({0: {2: 1.0}, 2: {0: 0.25, 1: 0.75}}, 3, 3)
    assert dense.dtype == torch.float64
    assert dense.tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.25, 0.75, 0.0]]


# Divergences


def test_token_kl_of_two_bernoullis() -> None:
    student, teacher = log([0.5, 0.5], [0.3, 0.7], [0.5, 0.5]), log([0.25, 0.75], [0.3, 0.7], [0.0, 1.0])
    expected = [0.25 * math.log(0.5) + 0.75 * math.log(1.5), 0.0, math.log(2)]  # the last one has 0 log 0
    assert token_kl(student, teacher).tolist() == pytest.approx(expected)


def test_cross_entropy_is_minus_the_log_probability_of_the_label() -> None:
    losses = cross_entropy(log([0.25, 0.75], [0.1, 0.9]), torch.tensor([0, 1]))
    assert losses.tolist() == pytest.approx([math.log(4), -math.log(0.9)])


@pytest.mark.parametrize(("c_teacher", "c_student"), [(1.0, 1.0), (0.8, 0.3), (0.1, 0.9)])
def test_generalized_kl_splits_into_kl_and_the_two_masses(c_teacher: float, c_student: float) -> None:
    p, q = torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5])
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    expected = c_teacher * kl + c_teacher * math.log(c_teacher / c_student) - c_teacher + c_student
    assert generalized_kl(c_teacher * p.double(), c_student * q.double()).item() == pytest.approx(expected)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 1)), min_size=1, max_size=5))
def test_generalized_kl_is_zero_if_and_only_if_both_sides_are_equal(pairs: list[tuple[float, float]]) -> None:
    p, q = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    assert generalized_kl(q, q).item() == 0
    if (p - q).abs().max() > 1e-6:
        assert generalized_kl(p, q).item() > 0


def test_generalized_kl_sums_over_the_support_only() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.5, 0.5, 0.0])
    assert generalized_kl(p, q).item() == math.inf
    value = generalized_kl(p, q, torch.tensor([True, True, False])).item()
    assert value == pytest.approx(0.25 * math.log(0.5) - 0.75 + 1.0)


# Projected KL


def test_chain_rule_projection_kl_of_one_to_many_and_many_to_one_spans() -> None:
    projection = dense_projection({0: {0: 1.0}, 1: {1: 0.75, 2: 0.25}}, 2, 3)
    student = log([0.5, 0.5], [0.2, 0.8], [0.6, 0.4])
    teacher = log([0.2, 0.6, 0.2], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4])
    labels = torch.tensor([1, 0, 1]), torch.tensor([1, 2, 0])
    losses = projection_kl(student, teacher, *labels, [(0, 1, 0, 2), (1, 3, 2, 3)], projection)
    # first span: c_T = 0.8, c_S = 1, projected student (0.5, 0.375, 0.125)
    first = 0.16 * math.log(0.16 / 0.5) + 0.48 * math.log(0.48 / 0.375) + 0.16 * math.log(0.16 / 0.125) - 0.8 + 1
    # second span: c_T = 1, c_S = 0.4, projected student 0.4 * (0.2, 0.6, 0.2)
    second = 0.3 * math.log(0.3 / 0.08) + 0.3 * math.log(0.3 / 0.24) + 0.4 * math.log(0.4 / 0.08) - 1 + 0.4
    assert losses.tolist() == pytest.approx([first, second])


def test_mean_projection_kl_averages_teacher_logs_and_student_probabilities() -> None:
    teacher = log([0.5, 0.5], [0.9, 0.1])  # geometric mean, normalized: (0.75, 0.25)
    student = log([0.2, 0.8], [0.8, 0.2])  # arithmetic mean: (0.5, 0.5)
    labels = torch.tensor([0, 0])
    identity = torch.eye(2, dtype=torch.float64)
    losses = projection_kl(student, teacher, labels, labels, [(0, 2, 0, 2)], identity, merge="mean")
    assert losses.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5)])


def test_teacher_tokens_without_a_column_take_no_part() -> None:
    projection = dense_projection({0: {0: 1.0}, 1: {1: 1.0}}, 3, 3)  # a zero row and a zero column
    student, teacher = log([0.4, 0.4, 0.2]), log([0.5, 0.25, 0.25])
    arguments = (student, teacher, torch.tensor([0]), torch.tensor([0]), [(0, 1, 0, 1)], projection)
    chain_rule = 0.5 * math.log(0.5 / 0.4) + 0.25 * math.log(0.25 / 0.4) - 0.75 + 0.8
    assert projection_kl(*arguments).tolist() == pytest.approx([chain_rule])
    mean = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert projection_kl(*arguments, merge="mean").tolist() == pytest.approx([mean])


@pytest.mark.parametrize("merge", ["chain_rule", "mean"])
def test_identity_projection_of_single_tokens_reduces_to_token_kl(merge: Merge) -> None:
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64).log_softmax(-1)
    labels = torch.tensor([0, 1, 2])
    spans = [(row, row + 1, row, row + 1) for row in range(3)]
    losses = projection_kl(student, teacher, labels, labels, spans, torch.eye(5, dtype=torch.float64), merge)
    torch.testing.assert_close(losses, token_kl(student, teacher))


@pytest.mark.parametrize("merge", ["chain_rule", "mean"])
def test_projection_kl_has_the_gradient_of_its_value(merge: Merge) -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.7, 0.3]], dtype=torch.float64)
    student_labels, teacher_labels = torch.tensor([0, 1, 1]), torch.tensor([2, 0])

    def losses(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
        spans = [(0, 2, 0, 1), (2, 3, 0, 2)]
        return projection_kl(student, teacher, student_labels, teacher_labels, spans, weights, merge)

    student_logits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    teacher_logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(losses, (student_logits, teacher_logits))


def test_token_losses_have_the_gradient_of_their_value() -> None:
    logits = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([2, 0])
    assert torch.autograd.gradcheck(lambda both: token_kl(*both.log_softmax(-1)), (logits,))
    assert torch.autograd.gradcheck(lambda both: cross_entropy(both[0].log_softmax(-1), labels), (logits,))


def test_no_spans_give_no_losses() -> None:
    labels = torch.tensor([0])
    losses = projection_kl(log([0.5, 0.5]), log([0.5, 0.5]), labels, labels, [], torch.eye(2, dtype=torch.float64))
    assert losses.shape == (0,)
