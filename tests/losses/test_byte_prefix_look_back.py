"""What the byte-prefix KL makes of a teacher's last token that might have gone on, at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from loss_cases import DIVERGENCES
from prefix_pairs import TEXT, Pair
from small_models import packing_tokenizer, splitting_tokenizer

from xtoken_pl.losses import Divergence
from xtoken_pl.losses.group_divergence import group_divergence

SHORT = " 12 a 1234 + 56 = 1290"


def make(text: str, divergence: Divergence = "forward") -> Pair:
    return Pair.of(splitting_tokenizer(), packing_tokenizer(), text, divergence=divergence)


@pytest.mark.parametrize("nats", [-50.0, -100.0, -700.0, -math.inf])
def test_what_might_have_gone_on_is_known_however_improbable_the_text_is(nats: float) -> None:
    """In single precision, too, where the probability that the token before has ended underflows."""
    pair = make(SHORT)
    student, teacher = (rows.float() for rows in pair.rows())
    boundary, tokens = pair.plan.boundary, pair.batch.teachers["t"].tokens
    num_longer = boundary.high - boundary.low
    place = int(num_longer.argmax())
    before = int(boundary.teacher[place]) - 1
    longer = pair.loss.mass.order[int(boundary.low[place]) : int(boundary.high[place])]
    assert len(longer) > 2
    teacher[before, longer] = torch.linspace(-1.0, -60.0, len(longer))
    teacher[before, tokens.labels[before]] = nats
    found = group_divergence(student, *pair.groups(teacher))
    for row, expected in pair.slow_nats(student.double(), teacher.double()).items():
        assert found[row].item() == pytest.approx(expected, rel=1e-4, abs=1e-4), row


@pytest.mark.parametrize("divergence", [name for name in DIVERGENCES if name != "forward"])
def test_text_that_the_teacher_did_not_expect_costs_no_more_where_its_probability_underflows(
    divergence: Divergence,
) -> None:
    """And no less: the student's token is not one that the teacher cannot write."""
    pair = make(SHORT, divergence)
    boundary, tokens = pair.plan.boundary, pair.batch.teachers["t"].tokens
    place = int((boundary.high - boundary.low).argmax())
    row, before = int(boundary.row[place]), int(boundary.teacher[place]) - 1
    student = torch.zeros(len(pair.batch.student.labels), len(pair.student))
    student[row, pair.student.token_bytes.index(b"%")] = 30.0  # with which no longer token goes on
    losses = []
    for nats in (-80.0, -95.0, -120.0, -300.0, -math.inf):
        teacher = pair.rows()[1].float()
        teacher[before, tokens.labels[before]] = nats
        nats_of_rows = group_divergence(student.log_softmax(-1), *pair.groups(teacher), divergence=divergence)
        losses.append(float(nats_of_rows[row]))
    assert losses == pytest.approx(losses[:1] * 5, rel=1e-4)
    assert losses[0] == pytest.approx(70 if divergence == "reverse" else math.log(2), rel=0.05)


def test_a_student_token_that_the_teacher_cannot_write_gets_nothing_of_what_might_have_gone_on() -> None:
    pair = make(TEXT)
    student, teacher = pair.rows()
    whole = pair.loss.mass.longest
    gets_most = whole == whole[whole >= 0].mode().values
    found = []
    for heir in (int(pair.loss.unwritten[0]), -1):
        pair.loss.mass.longest = whole.masked_fill(gets_most, heir)
        found.append(group_divergence(student, pair.groups(teacher)[0]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)
    pair.loss.mass.longest = whole
    assert (group_divergence(student, pair.groups(teacher)[0]) - found[0]).abs().max() > 1e-3
