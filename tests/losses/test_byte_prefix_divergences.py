"""Reverse and Jensen-Shannon form of the byte-prefix KL: values, gradients, and the mass that no group has."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from loss_cases import DIVERGENCES
from plain_divergences import PROBS, covered_divergence, listed_divergence
from prefix_pairs import Pair
from small_models import numeral_tokenizer, packing_tokenizer, reversing_tokenizer, splitting_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl.losses import Divergence
from xtoken_pl.losses.group_divergence import ColumnSums, Groups, group_divergence

PAIRS: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], Callable[[], PreTrainedTokenizerFast]]] = {
    "packing from splitting": (packing_tokenizer, splitting_tokenizer),
    "splitting from packing": (splitting_tokenizer, packing_tokenizer),
    "reversing from packing": (reversing_tokenizer, packing_tokenizer),
    "small from large": (lambda: splitting_tokenizer(320), lambda: reversing_tokenizer(1200)),
}
every_pair = pytest.mark.parametrize("name", PAIRS)
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)
every_new_divergence = pytest.mark.parametrize("divergence", [name for name in DIVERGENCES if name != "forward"])


def make(name: str, divergence: Divergence, text: str | None = None) -> Pair:
    student, teacher = (tokenizer() for tokenizer in PAIRS[name])
    if text is None:
        return Pair.of(student, teacher, divergence=divergence)
    return Pair.of(student, teacher, text, divergence=divergence)


def nats_and_gradient(log_probs: Tensor, groups: tuple[Groups, ...], divergence: Divergence) -> tuple[Tensor, Tensor]:
    leaf = log_probs.clone().requires_grad_()
    nats = group_divergence(leaf, *groups, divergence=divergence)
    weights = torch.linspace(0.5, 1.5, len(nats), dtype=nats.dtype)
    (gradient,) = torch.autograd.grad((weights * nats).sum(), leaf)
    return nats.detach(), gradient


def memberships(groups: Groups, size: int) -> tuple[Tensor, Tensor]:
    """``[R, C + G, V]`` whether a token is in a group, ``[R, C + G]`` the group's mass, normalized."""
    column = torch.arange(size) if groups.sums is None else groups.sums.column
    num_rows, num_columns = groups.column_mass.shape
    num_branches = len(groups.branch_mass)
    is_in = torch.zeros(num_rows, num_columns + num_branches, size, dtype=torch.float64)
    is_in[:, :num_columns] = (torch.arange(num_columns)[:, None] == column).double()
    row, token = groups.member // size, groups.member % size
    is_in[row, :, token] = 0
    is_in[row, num_columns + groups.member_branch, token] = 1
    if groups.others is not None:
        last = num_columns + num_branches - len(groups.others) + torch.arange(len(groups.others))
        is_in[groups.others_position] *= 1 - groups.others[:, None].double()
        is_in[groups.others_position, last] = groups.others.double()
    mass = torch.cat((groups.column_mass, torch.zeros(num_rows, num_branches, dtype=torch.float64)), dim=1)
    mass[groups.branch_position, num_columns + torch.arange(num_branches)] = groups.branch_mass
    return is_in, mass / mass.sum(-1, keepdim=True)


def plain(log_probs: Tensor, groups: tuple[Groups, ...], divergence: Divergence) -> Tensor:
    """The definition with a matrix of memberships, as autograd sees it."""
    loss = torch.zeros(len(log_probs), dtype=torch.float64)
    for part in groups:
        if not len(part.row):
            continue
        is_in, teacher = memberships(part, log_probs.shape[1])
        student = torch.einsum("rgv,rv->rg", is_in, log_probs[part.row].exp()) * (teacher > 0)
        loss = loss.index_add(0, part.row, covered_divergence(teacher, student, divergence))
    return loss


@every_new_divergence
@every_pair
def test_every_position_equals_the_slow_reference(name: str, divergence: Divergence) -> None:
    pair = make(name, divergence)
    student, teacher = pair.rows()
    ours = group_divergence(student, *pair.groups(teacher), divergence=divergence)
    expected = pair.slow_nats(student, teacher)
    assert len(expected) > 100
    for row, nats in expected.items():
        assert ours[row].item() == pytest.approx(nats, abs=1e-10, rel=1e-10), row


@every_divergence
@pytest.mark.parametrize("teacher_split", [1, 2, 3])
def test_tokens_that_the_text_rules_out_have_no_mass_and_are_charged_as_such(
    divergence: Divergence, teacher_split: int
) -> None:
    """The student writes a numeral in shorter tokens than it has; the path's end belongs to the one that it wrote."""
    student_side = numeral_tokenizer(longest_token=3, longest_split=1, letters="x")
    teacher_side = numeral_tokenizer(longest_token=teacher_split, longest_split=teacher_split, letters="x")
    pair = Pair.of(student_side, teacher_side, "01101001101", divergence=divergence)
    student, teacher = pair.rows()
    groups = pair.groups(teacher)
    nats = group_divergence(student, *groups, divergence=divergence)
    expected = pair.slow_nats(student, teacher)
    assert len(expected) > 8
    assert nats[list(expected)].tolist() == pytest.approx(list(expected.values()), abs=1e-10, rel=1e-10)
    ruled_out = groups[0].column_mass if teacher_split == 3 else groups[0].branch_mass
    assert (ruled_out == 0).any()
    torch.testing.assert_close(nats, plain(student, groups, divergence), rtol=0, atol=1e-10)


SHORT = " 1234 + 56 = 1290; naive unhappiness (17%)"


@every_divergence
@every_pair
def test_value_and_gradient_are_those_of_the_definition(name: str, divergence: Divergence) -> None:
    pair = make(name, divergence, SHORT)
    student, teacher = pair.rows()
    groups = pair.groups(teacher)
    nats, gradient = nats_and_gradient(student, groups, divergence)
    leaf = student.clone().requires_grad_()
    expected = plain(leaf, groups, divergence)
    weights = torch.linspace(0.5, 1.5, len(nats), dtype=torch.float64)
    (of_definition,) = torch.autograd.grad((weights * expected).sum(), leaf)
    torch.testing.assert_close(nats, expected.detach(), rtol=0, atol=1e-11)
    torch.testing.assert_close(gradient, of_definition, rtol=0, atol=1e-11)
    assert gradient.abs().max() > 0.1


# By hand: student tokens 0 to 6; 0 and 1 are column 0, 2 and 3 column 1, 4 column 2, which branches take apart in row
# 0 with 5; 6 is in none.

COLUMNS = torch.tensor([0, 0, 1, 1, 2, 2, -1])


def by_hand() -> Groups:
    return Groups(
        row=torch.tensor([0, 1]),
        column_mass=torch.tensor([[0.3, 0.3, 0.0], [0.1, 0.2, 0.1]], dtype=torch.float64),
        sums=ColumnSums(COLUMNS),
        branch_mass=torch.tensor([0.15, 0.05], dtype=torch.float64),
        branch_position=torch.tensor([0, 0]),
        member_branch=torch.tensor([0, 1]),
        member=torch.tensor([4, 5]),
    )


@every_divergence
def test_masses_are_normalized_and_the_uncovered_mass_is_charged(divergence: Divergence) -> None:
    expected = [
        listed_divergence([0.375, 0.375, 0.1875, 0.0625], [0.375, 0.25, 0.25, 0.125], divergence) - math.log(0.8),
        listed_divergence([0.25, 0.5, 0.25], [0.25, 0.25, 0.5], divergence) - math.log(0.8),
    ]
    assert group_divergence(PROBS.log(), by_hand(), divergence=divergence).tolist() == pytest.approx(expected)
    gradcheck = torch.autograd.gradcheck(
        lambda rows: group_divergence(rows, by_hand(), divergence=divergence), PROBS.log().requires_grad_()
    )
    assert gradcheck


def test_reverse_of_a_student_that_is_covered_is_the_plain_sum() -> None:
    probs = PROBS.clone()
    probs[:, 0] += probs[:, 6]
    probs[:, 6] = 0
    pairs = [[(0.5, 0.375), (0.2, 0.375), (0.2, 0.1875), (0.1, 0.0625)], [(0.4, 0.25), (0.2, 0.5), (0.4, 0.25)]]
    expected = [sum(p * math.log(p / q) for p, q in row) for row in pairs]
    assert group_divergence(probs.log(), by_hand(), divergence="reverse").tolist() == pytest.approx(expected)


@every_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_without_mass_and_without_groups_have_loss_zero(divergence: Divergence, dtype: torch.dtype) -> None:
    groups = by_hand()
    empty = Groups(
        torch.tensor([0, 2]), 0 * groups.column_mass, groups.sums, 0 * groups.branch_mass, *groups_places(groups)
    )
    rows = torch.cat((PROBS, PROBS[:1])).to(dtype).log()
    nats, gradient = nats_and_gradient(rows, (empty,), divergence)
    assert nats.tolist() == [0, 0, 0]
    assert not gradient.any()


def groups_places(groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
    return groups.branch_position, groups.member_branch, groups.member


def agreeing(groups: tuple[Groups, ...], num_rows: int, size: int) -> Tensor:
    """Probabilities of a student whose groups have the teacher's mass, which its tokens share unevenly."""
    torch.manual_seed(0)
    shares = 0.1 + torch.rand(num_rows, size, dtype=torch.float64)
    probs = torch.zeros(num_rows, size, dtype=torch.float64)
    for part in groups:
        is_in, mass = memberships(part, size)
        inside = torch.einsum("rgv,rv->rg", is_in, shares[part.row])
        probs[part.row] = shares[part.row] * torch.einsum("rg,rgv->rv", mass / inside.clamp_min(1e-300), is_in)
    return probs


@every_divergence
@every_pair
def test_loss_is_zero_where_the_groups_agree_and_grows_with_the_mass_outside(name: str, divergence: Divergence) -> None:
    pair = make(name, divergence, SHORT)
    student, teacher = pair.rows()
    groups = pair.groups(teacher)
    learned = torch.cat([part.row for part in groups])
    same = agreeing(groups, *student.shape)
    nats, gradient = nats_and_gradient(same.log(), groups, divergence)
    torch.testing.assert_close(nats, torch.zeros_like(nats), rtol=0, atol=1e-12)
    at_logits = gradient - same * gradient.sum(-1, keepdim=True)
    torch.testing.assert_close(at_logits, torch.zeros_like(at_logits), rtol=0, atol=1e-12)
    other = student.exp() * (same > 0)
    other /= other.sum(-1, keepdim=True)
    assert (group_divergence(other.log(), *groups, divergence=divergence)[learned] > 1e-3).all()
    # A token in no group; each form charges the same for mass that moves there, whatever the others have.
    for probs in (same, other):
        outside = probs == 0
        has_outside = outside.any(-1)
        moved = 0.7 * probs + 0.3 * outside / outside.sum(-1, keepdim=True).clamp_min(1)
        before, after = (group_divergence(rows.log(), *groups, divergence=divergence) for rows in (probs, moved))
        rows = learned[has_outside[learned]]
        assert len(rows)
        torch.testing.assert_close(after[rows] - before[rows], torch.full_like(before[rows], -math.log(0.7)))


def certain(labels: Tensor, size: int, gap: float) -> Tensor:
    """Float32 log-probabilities of rows that are almost sure of their labels."""
    logits = torch.zeros(len(labels), size)
    logits[torch.arange(len(labels)), labels] = gap
    return logits.log_softmax(-1)


@every_new_divergence
@pytest.mark.parametrize(
    ("name", "kind", "place", "student_token", "teacher_token"),
    [("packing from splitting", "boundary", 0, b"x", b"x"), ("splitting from packing", "inside", 2, b"7", b"57")],
    ids=["boundary", "inside"],
)
def test_a_probability_of_the_teacher_costs_no_more_where_it_underflows(
    name: str, kind: str, place: int, student_token: bytes, teacher_token: bytes, divergence: Divergence
) -> None:
    """And no less: it is not a token that the teacher cannot write."""
    pair = make(name, divergence, SHORT)
    positions = getattr(pair.plan, kind)
    row, teacher_row = int(positions.row[place]), int(positions.teacher[place])
    labels = torch.full_like(pair.batch.student.labels, pair.student.token_bytes.index(student_token))
    student = certain(labels, len(pair.student), 30.0)
    losses = []
    for nats in (-80.0, -95.0, -120.0, -300.0):
        teacher = pair.rows()[1].float()
        teacher[teacher_row, pair.teacher.token_bytes.index(teacher_token)] = nats
        values, gradient = nats_and_gradient(student, pair.groups(teacher), divergence)
        assert (65536 * gradient).isfinite().all()
        losses.append(float(values[row]))
    assert losses == pytest.approx(losses[:1] * 4, rel=1e-4)
    assert losses[0] == pytest.approx(70 if divergence == "reverse" else math.log(2), rel=0.05)


@pytest.mark.parametrize("gap", [30.0, 50.0, 90.0])
def test_a_student_that_stops_where_the_teacher_surely_goes_on_pays_no_rounding_error(gap: float) -> None:
    """The teacher's probability to stop, 1 minus the others, is known to 1e-7 in single precision, or is 0."""
    pair = make("packing from splitting", "reverse", SHORT)
    row = int(pair.plan.boundary.row[0])
    assert pair.student.token_bytes[pair.batch.student.labels[row]] == b"123"
    shorter = torch.full_like(pair.batch.student.labels, pair.student.token_bytes.index(b"1"))
    student = certain(shorter, len(pair.student), 30.0)
    teacher = certain(pair.batch.teachers["t"].tokens.labels, len(pair.teacher), gap)
    loss = group_divergence(student, *pair.groups(teacher), divergence="reverse")[row].item()
    assert loss == pytest.approx(-math.log(torch.finfo(torch.float32).eps), abs=0.7)
