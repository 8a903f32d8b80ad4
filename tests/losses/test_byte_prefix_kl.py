"""The byte-prefix KL against its slow reference, on small and on real tokenizers, in gradient, and at the edges."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import cast

import pytest
import torch
from loss_cases import CASES, DIVERGENCES
from prefix_pairs import Pair, assert_is_token_kl
from real_tokenizers import llama2_style
from reference_byte_prefix import BytePrefixReference
from small_models import packing_tokenizer, reversing_tokenizer, splitting_tokenizer
from torch import Tensor

from xtoken_pl import BytePrefixKL
from xtoken_pl.losses import Divergence
from xtoken_pl.losses.group_divergence import Groups, group_divergence
from xtoken_pl.prefix_map import Positions, PrefixPlan

PAIRS = {
    "packing from splitting": (packing_tokenizer, splitting_tokenizer),
    "splitting from packing": (splitting_tokenizer, packing_tokenizer),
    "reversing from packing": (reversing_tokenizer, packing_tokenizer),
    "small from large": (lambda: splitting_tokenizer(320), lambda: reversing_tokenizer(1200)),
    "byte pieces from packing": (lambda: llama2_style(420, space_first=False), packing_tokenizer),
    "packing from byte pieces": (packing_tokenizer, lambda: llama2_style(420, space_first=False)),
}
every_pair = pytest.mark.parametrize("name", PAIRS)


def make(name: str) -> Pair:
    student, teacher = PAIRS[name]
    return Pair.of(student(), teacher())


def assert_equals_the_reference(pair: Pair) -> None:
    student, teacher = pair.rows()
    groups = pair.groups(teacher)
    ours, expected = group_divergence(student, *groups), pair.slow_nats(student, teacher)
    assert {int(row) for part in groups for row in part.row} == expected.keys()
    for row, nats in expected.items():
        assert ours[row].item() == pytest.approx(nats, abs=1e-10, rel=1e-10), row


@every_pair
def test_every_position_equals_the_slow_reference(name: str) -> None:
    assert_equals_the_reference(make(name))


def test_masked_text_is_not_read() -> None:
    """The path behind a position ends before it, in the middle of a text too."""
    whole = Pair.of(packing_tokenizer(), splitting_tokenizer())
    pair = Pair.of(packing_tokenizer(), splitting_tokenizer(), masked=range(3, len(whole.window["student_ids"]), 5))
    for table in ("levels", "open"):
        assert 20 < pair.plan.boundary.count(table) < 0.9 * whole.plan.boundary.count(table)
    assert_equals_the_reference(pair)


def test_without_the_path_it_is_the_kl_of_leading_tokens() -> None:
    pair = Pair.of(packing_tokenizer(), splitting_tokenizer())
    view = pair.batch.teachers["t"]
    apart = replace(view, tokens=replace(view.tokens, rows=2 * view.tokens.rows))  # no row is that of the next token
    plan = cast(PrefixPlan, pair.loss.planner(pair.batch.student, apart))
    assert plan.boundary.count("levels") == 0
    student, teacher = pair.rows()
    groups = pair.loss.mass.at_boundaries(plan.boundary, pair.block(student, teacher).teacher)
    reference = pair.reference()
    for place in (0, 7, 50):
        row, teacher_row = int(plan.boundary.row[place]), int(plan.boundary.teacher[place])
        expected = 0.0
        possible = {*range(len(pair.teacher))} - {*excluded_of(plan.boundary, place)}
        for lead, members in reference.leads.items():
            target = [v for v in possible if lead_of(reference, v) == lead]
            if not target:
                continue
            mass = teacher[teacher_row].exp()[target].sum()
            expected += float(mass * (mass / student[row].exp()[members].sum()).log())
        dropped = [v for v in possible if lead_of(reference, v) is None]
        assert float(teacher[teacher_row].exp()[dropped].sum()) < 1e-3
        total = float(teacher[teacher_row].exp()[[v for v in possible if v not in dropped]].sum())
        normalized = expected / total - math.log(total)
        assert group_divergence(student, groups)[row].item() == pytest.approx(normalized, abs=1e-10)


def excluded_of(positions: Positions, place: int) -> list[int]:
    """The teacher tokens that cannot follow at a boundary."""
    return cast(list[int], positions.excluded_token[positions.excluded_position == place].tolist())


def lead_of(reference: BytePrefixReference, v: int) -> int | None:
    """The leading token of the group that gets a teacher token's mass."""
    if v in reference.leads:
        return v
    heir = reference.phi(reference.teacher_bytes[v])
    return None if heir is None else reference.written[heir][0]


@every_pair
def test_gradient_by_hand_is_that_of_autograd(name: str) -> None:
    pair = make(name)
    student, teacher = pair.rows()
    groups = pair.groups(teacher)
    weights = torch.rand(len(student), dtype=torch.float64)
    ours, plain = student.clone().requires_grad_(), student.clone().requires_grad_()
    (group_divergence(ours, *groups) * weights).sum().backward()
    loss = plain_group_kl(plain, *groups)
    (loss * weights).sum().backward()
    torch.testing.assert_close(group_divergence(student, *groups), loss.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=0, atol=1e-10)


def nats_of(mass: Tensor, probs: Tensor) -> Tensor:
    return mass * (mass.clamp_min(1e-300).log() - probs.clamp_min(1e-300).log())


def plain_group_kl(log_probs: Tensor, *groups: Groups) -> Tensor:
    """The formula, as autograd sees it."""
    loss = torch.zeros(len(log_probs), dtype=log_probs.dtype)
    for part in groups:
        probs = log_probs[part.row].exp()
        mass, ours = part.column_mass, probs
        if part.sums is not None:
            none = torch.zeros(len(probs), mass.shape[1] + 1, dtype=probs.dtype)
            ours = none.index_add(1, part.sums.column, probs)[:, :-1]
        branches = torch.zeros_like(part.branch_mass).index_add(0, part.member_branch, probs.flatten()[part.member])
        if part.others is not None:
            of_others = (probs[part.others_position] * part.others).sum(-1)
            branches = torch.cat((branches[: len(branches) - len(of_others)], of_others))
        total = mass.sum(-1).index_add(0, part.branch_position, part.branch_mass)
        of_branch = part.branch_mass / total[part.branch_position]
        nats = nats_of(mass / total[:, None], ours).sum(-1)
        nats = nats.index_add(0, part.branch_position, nats_of(of_branch, branches))
        loss = loss.index_add(0, part.row, nats)
    return loss


def test_rows_that_every_loss_is_tested_on_have_groups_of_both_kinds() -> None:
    rows = next(case for case in CASES if case.kind is BytePrefixKL).rows()
    assert rows.pair is not None
    groups = rows.pair.groups(rows.teacher)
    assert all(part.branch_mass.numel() for part in groups), "at boundaries and inside tokens"


@pytest.mark.parametrize(
    ("of_student", "of_teacher"),
    [(torch.float32, torch.float32), (torch.float64, torch.float32), (torch.float32, torch.float64)],
    ids=str,
)
def test_other_precisions_are_close(of_student: torch.dtype, of_teacher: torch.dtype) -> None:
    pair = make("reversing from packing")
    student, teacher = pair.rows()
    exact = pair.loss(pair.block(student, teacher)).loss
    rows = student.to(of_student).requires_grad_()
    nats = pair.loss(pair.block(rows, teacher.to(of_teacher))).loss
    nats.sum().backward()
    assert nats.dtype == rows.dtype
    torch.testing.assert_close(nats.double().detach(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_broken_row_shows_and_spoils_no_other_window(divergence: Divergence) -> None:
    pair = Pair.of(packing_tokenizer(), splitting_tokenizer(), divergence=divergence)
    student, teacher = pair.rows()
    before = group_divergence(student, *pair.groups(teacher), divergence=divergence)
    teacher[0] = math.nan
    after = group_divergence(student, *pair.groups(teacher), divergence=divergence)
    reads_it = pair.plan.boundary.teacher == 0
    assert after[pair.plan.boundary.row[reads_it]].isnan().all()
    impossible = pair.rows()[1]
    impossible[0, pair.batch.teachers["t"].tokens.labels[0]] = -math.inf
    after = group_divergence(student, *pair.groups(impossible), divergence=divergence)
    assert after.isfinite().all()
    torch.testing.assert_close(after[50:], before[50:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_same_tokenizer_gives_token_kl(divergence: Divergence) -> None:
    pair = Pair.of(packing_tokenizer(), packing_tokenizer(), divergence=divergence)
    assert pair.plan.boundary.count("open") > 100, "tokens that begin others"
    assert pair.spans.student_length.max() == 1
    assert_is_token_kl(pair, divergence, atol=1e-10)


REAL_TEXT = "  Ça coûte 1 234,50 € (中文: 數字)!\n\n\tif x >= 12345:\n        return 'naïve unhappiness'\n"


@pytest.mark.parametrize(
    "names",
    [
        ("llama3", "qwen3"),
        pytest.param(("smollm2", "qwen3"), marks=pytest.mark.slow),
        pytest.param(("llama3", "smollm2"), marks=pytest.mark.slow),
        ("smollm2", "llama2_style"),
        ("llama2_style", "smollm2"),
    ],
    ids=" from ".join,
)
def test_every_position_of_real_text_holds_all_of_the_teachers_mass(
    names: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    """In single precision; but for special tokens that the student has no counterpart of, and for what the student
    would have written with its last token.
    """
    pair = Pair.of(*(request.getfixturevalue(name) for name in names), REAL_TEXT)
    tokens, plan = pair.batch.teachers["t"].tokens, pair.plan
    torch.manual_seed(0)
    rows = (3 * torch.randn(len(tokens.labels), len(pair.teacher))).log_softmax(-1)
    shared, texts, student_texts = set(pair.special().values()), pair.teacher.token_bytes, set(pair.student.token_bytes)

    @cache
    def begins_with_a_token(text: bytes) -> bool:
        return any(text[:end] in student_texts for end in range(1, len(text) + 1))

    @cache
    def stands_for_text(there: bytes) -> Tensor:
        """Of every teacher token, whether a student token can stand for what it adds to the bytes that are there."""
        return torch.tensor(
            [
                (text.startswith(there) and begins_with_a_token(text[len(there) :])) or (not there and v in shared)
                for v, text in enumerate(texts)
            ]
        )

    num_positions, none = 0, torch.zeros(len(texts), dtype=torch.bool)
    for groups, positions in zip(pair.groups(rows), (plan.boundary, plan.inside), strict=True):
        total = groups.column_mass.sum(-1).index_add(0, groups.branch_position, groups.branch_mass)
        is_inside = positions is plan.inside
        for place, (row, consumed) in enumerate(zip(positions.teacher, positions.consumed.tolist(), strict=True)):
            before = rows[row if is_inside else row - 1].double().exp()  # of the token that may go on
            there = texts[tokens.labels[row if is_inside else row - 1]][:consumed]
            goes_on = stands_for_text(there).clone() if positions.low[place] < positions.high[place] else none
            if excluding := int(positions.excluding[place]):
                for v in goes_on.nonzero().flatten().tolist():
                    goes_on[v] = texts[v][consumed - excluding :] not in student_texts
            expected = longer = before[goes_on].sum().item()
            if is_inside:
                expected += sum(before[v].item() for v, text in enumerate(texts) if text == there)
            else:
                follows = stands_for_text(b"").clone()
                follows[excluded_of(positions, place)] = False
                ended = before[tokens.labels[row - 1]].item() if goes_on is not none else 1.0
                expected = (ended * rows[row].double().exp()[follows].sum().item() + longer) / (ended + longer)
            assert total[place].item() == pytest.approx(expected, abs=1e-6)
            num_positions += 1
    # All but the first token where nothing predicts it, or where it is a space that the other side does not have.
    assert num_positions >= len(pair.batch.student.labels) - 2


def test_a_teacher_that_is_certain_of_a_token_raises_it_above_every_other() -> None:
    """Also where its own tokens are the beginnings of others: no pull towards 1, 11, 111."""
    pair = Pair.of(packing_tokenizer(), splitting_tokenizer(), " It is 123, then 45 and 19 of 150.")
    tokens = pair.batch.teachers["t"].tokens
    certain = torch.full((len(tokens.labels), len(pair.teacher)), -40.0, dtype=torch.float64)
    certain[torch.arange(len(tokens.labels)), tokens.labels] = 0.0
    labels = pair.batch.student.labels
    for seed in range(3):
        student = torch.randn(len(labels), len(pair.student), generator=torch.Generator().manual_seed(seed)).double()
        logits = student.requires_grad_()
        nats = pair.loss(pair.block(logits.log_softmax(-1), certain.log_softmax(-1))).loss
        nats.sum().backward()
        step = -cast(Tensor, logits.grad)
        rows = torch.nonzero(pair.spans.student_span < len(pair.spans)).flatten()
        numerals = [row for row in rows.tolist() if pair.student.token_bytes[labels[row]].strip().isdigit()]
        assert len(numerals) >= 4
        for row in rows.tolist():
            best = step[row].argsort(descending=True)[:2]
            assert best[0] == labels[row]
            assert step[row, best[0]] > 0 > step[row, best[1]] - 1e-9
