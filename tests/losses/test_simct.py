"""SimCT: its candidates against a search of all tokens, its divergence by hand, and what it reduces to."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from fake_vocabularies import STUDENT, TEACHER, V_S, V_T, slow_pairs
from loss_cases import DIVERGENCES
from plain_divergences import listed_divergence
from prefix_pairs import Pair
from simct_pairs import bread, every_pair, make, planned
from small_models import packing_tokenizer
from span_rows import LABELS, NUM_STUDENT_ROWS, NUM_TEACHER_ROWS, SPANS, Spans, random_rows
from torch import Tensor

from xtoken_pl import SimCT, StrictTopK, TokenKL
from xtoken_pl.losses import Divergence, SpanBlock
from xtoken_pl.losses.simct import Units
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.writing import write_bytes

every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


# The worked example of https://arxiv.org/abs/2609.34738, B.5


def bread_rows(vocabulary: CanonicalVocabulary, *rows: dict[str, float]) -> Tensor:
    """Logarithms of the probabilities of some tokens; all others have none."""
    ids = {text.decode(): token for token, text in enumerate(vocabulary.token_bytes)}
    probs = torch.zeros(len(rows), len(vocabulary), dtype=torch.float64)
    for row, given in zip(probs, rows, strict=True):
        for text, probability in given.items():
            row[ids[text]] = probability
    return probs.log()


def bread_block(loss: SimCT, factor: float = 1.0) -> SpanBlock:
    student, teacher = bread()
    first, then = {"Br": 0.5, "Cat": 0.2}, {"ead": 0.2, "eads": 0.3, "eak": 0.1}
    rows = [{token: factor * p for token, p in row.items()} for row in (first, then)]
    labels = tuple(torch.tensor(write_bytes(side, [b"Bread"])[0]) for side in (student, teacher))
    assert [len(each) for each in labels] == [2, 1]
    logs = bread_rows(student, *rows), bread_rows(teacher, {"Bread": 0.4, "Breads": 0.2, "Break": 0.3, "Cat": 0.1})
    spans: Spans = [(0, 2, 0, 1)]
    block = planned(loss, logs, cast(Any, labels), spans)
    # Not normalized, so that the example's probabilities are kept.
    sides = [replace(side, log_probs=log) for side, log in zip((block.student, block.teacher), logs, strict=True)]
    return replace(block, student=sides[0], teacher=sides[1])


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_worked_example_is_the_published_value_whatever_mass_the_student_has_elsewhere(factor: float) -> None:
    loss = SimCT()
    loss.bind(*bread(), None)
    scores = loss(bread_block(loss, factor))
    assert scores.loss.tolist() == pytest.approx([0.1062], abs=5e-5)
    assert scores.unmapped_mass.tolist() == pytest.approx([1 - factor * 0.2])


def test_the_observed_text_alone_is_the_published_program_s_candidate() -> None:
    loss = SimCT(units="observed")
    loss.bind(*bread(), None)
    student, teacher = 0.2 + 0.1**0.5, 0.1 + 0.4
    expected = listed_divergence([0.1 / teacher, 0.4 / teacher], [0.2 / student, 0.1**0.5 / student], "reverse")
    assert loss(bread_block(loss)).loss.tolist() == pytest.approx([expected], abs=1e-12)


def slow_losses(rows: tuple[Tensor, Tensor], divergence: Divergence) -> list[float]:
    """Of spans of letters, which have no units but their own text."""
    student, teacher = (side.log_softmax(-1) for side in rows)
    losses = []
    for a, b, c, d in SPANS:
        scores = [[float(log) for log in (student[a, s], teacher[c, t])] for s, t in slow_pairs(None)]
        if (b - a, d - c) != (1, 1):
            ours = sum(float(student[row, LABELS[0][row]]) for row in range(a, b)) / (b - a)
            theirs = sum(float(teacher[row, LABELS[1][row]]) for row in range(c, d)) / (d - c)
            scores.append([ours, theirs])
        p, q = (torch.tensor(side, dtype=torch.float64).softmax(0).tolist() for side in zip(*scores, strict=True))
        losses.append(listed_divergence(q, p, divergence))
    return losses


@every_divergence
def test_observed_units_by_hand(divergence: Divergence) -> None:
    loss = SimCT(units="observed", divergence=divergence)
    loss.bind(STUDENT, TEACHER, None)
    rows = random_rows(NUM_STUDENT_ROWS, V_S, 1), random_rows(NUM_TEACHER_ROWS, V_T, 2)
    block = planned(loss, rows, LABELS, SPANS)
    assert loss(block).loss.tolist() == pytest.approx(slow_losses(rows, divergence), abs=1e-12)


@every_divergence
@pytest.mark.parametrize("units", ["path", "observed"])
def test_of_one_tokenizer_it_is_token_kl(units: Units, divergence: Divergence) -> None:
    loss: Any = SimCT(units=units, divergence=divergence)
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    loss.bind(vocabulary, vocabulary, None)
    pair = Pair.of(packing_tokenizer(), packing_tokenizer(), loss=loss)
    block = pair.block(*pair.rows())
    expected = TokenKL(divergence=divergence)(block).loss
    assert len(expected) > 100
    torch.testing.assert_close(loss(block).loss, expected, rtol=0, atol=1e-12)


@every_pair
def test_on_one_to_one_spans_it_is_the_strict_loss_and_elsewhere_units_change_it(name: str) -> None:
    path, observed, strict = make(name), make(name, "observed"), StrictTopK()
    strict.bind(path.student, path.teacher, None)
    student, teacher = path.rows()
    ours, alone = (pair.loss(pair.block(student, teacher)).loss for pair in (path, observed))
    is_single = (path.spans.student_length == 1) & (path.spans.teacher_length == 1)
    assert is_single.any()
    torch.testing.assert_close(
        ours[is_single], strict(path.block(student, teacher)).loss[is_single], rtol=0, atol=1e-12
    )
    torch.testing.assert_close(ours[is_single], alone[is_single], rtol=0, atol=1e-12)
    assert (ours - alone).abs()[~is_single].max() > 1e-3


@every_divergence
def test_gradient_of_candidates_that_a_span_lacks_is_zero_under_a_gradient_scaler(divergence: Divergence) -> None:
    pair = copy.copy(make("reversing from packing"))
    loss = copy.deepcopy(cast(Any, pair.loss))
    loss.divergence = divergence
    student, teacher = (rows.float() for rows in pair.rows())
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(65536 * loss(pair.block(student, teacher)).loss.sum(), student)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 1


@every_divergence
def test_fewer_teacher_candidates_never_raise_the_loss(divergence: Divergence) -> None:
    pair = make("packing from splitting")
    student, teacher = pair.rows()
    block, losses = pair.block(student, teacher), []
    for top_k in (1, 5, 50, None):
        loss = copy.deepcopy(cast(Any, pair.loss))
        loss.divergence, loss.teacher_top_k = divergence, top_k
        losses.append(loss(block).loss)
    for fewer, more in pairwise(losses):
        assert (fewer <= more + 1e-12).all()
        assert (fewer < more - 1e-6).any()


def test_unknown_units_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="units must be one of path, observed, got 'all'"):
        SimCT(units=cast(Any, "all"))
