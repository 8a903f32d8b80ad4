"""SimCT: its candidates against a search of all tokens, its divergence by hand, and what it reduces to."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, cast

import pytest
import torch
from fake_vocabularies import STUDENT, TEACHER, V_S, V_T, slow_pairs
from loss_cases import DIVERGENCES
from plain_divergences import listed_divergence
from prefix_pairs import Pair
from small_models import packing_tokenizer, reversing_tokenizer, splitting_tokenizer
from span_rows import LABELS, NUM_STUDENT_ROWS, NUM_TEACHER_ROWS, SPANS, Spans, block_of, random_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl import BytePrefixKL, SimCT, StrictTopK, TokenKL, VocabularyPartition
from xtoken_pl.batch import SpanBatch, TeacherBatch, TokenBatch
from xtoken_pl.losses import Divergence, SpanBlock
from xtoken_pl.losses.joint_units import UnitPlan, UnitPlanner
from xtoken_pl.losses.simct import Units
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.tokenization.writing import whole_tokens, write_bytes

every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def batch_of(labels: tuple[Tensor, Tensor], spans: Spans) -> tuple[TokenBatch, TeacherBatch]:
    """A batch as far as a planner of units reads it."""
    block = block_of(*(torch.zeros(len(each), 2) for each in labels), labels, spans)
    student, teacher = block.student, block.teacher
    relations = SpanBatch(student.first, student.length, teacher.first, teacher.length, student.span, teacher.span)
    tokens = [TokenBatch(each[None], torch.ones_like(each[None]), torch.arange(len(each)), each) for each in labels]
    return tokens[0], TeacherBatch(tokens[1], relations)


def planned(loss: SimCT, rows: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], spans: Spans) -> SpanBlock:
    return replace(block_of(*rows, labels, spans), plan=loss.planner(*batch_of(labels, spans)))


# The worked example of https://arxiv.org/abs/2609.34738, B.5


def word_tokenizer(words: list[str], merges: list[tuple[str, str]]) -> CanonicalVocabulary:
    """Letters, words, and what merges make of the letters."""
    merged = ["".join(merge) for merge in merges]
    letters = sorted({letter for text in (*words, *merged) for letter in text})
    vocabulary = list(dict.fromkeys([*letters, *merged, *words]))
    ids = {token: number for number, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(ids, merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return CanonicalVocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


@cache
def bread() -> tuple[CanonicalVocabulary, CanonicalVocabulary]:
    merges = [("B", "r"), ("e", "a"), ("ea", "d"), ("ead", "s"), ("ea", "k")]
    return word_tokenizer(["Cat"], merges), word_tokenizer(["Bread", "Breads", "Break", "Cat"], [])


def bread_rows(vocabulary: CanonicalVocabulary, *rows: dict[str, float]) -> Tensor:
    """Probabilities of some tokens; what is left is on a token that no candidate has."""
    probs = torch.zeros(len(vocabulary), dtype=torch.float64)
    ids = {text.decode(): token for token, text in enumerate(vocabulary.token_bytes)}
    found = [
        probs.scatter(0, torch.tensor([ids[t] for t in row]), torch.tensor([*row.values()]).double()) for row in rows
    ]
    return torch.stack(found).log()


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


def test_a_span_whose_sides_differ_by_a_space_has_itself_alone_as_a_unit() -> None:
    loss = SimCT()
    loss.bind(*bread(), None)
    labels = tuple(
        torch.tensor(write_bytes(side, [t])[0]) for side, t in zip(bread(), (b"Bread", b"Breads"), strict=True)
    )
    plan = cast(UnitPlan, loss.planner(*batch_of(cast(Any, labels), [(0, 2, 0, 1)])))
    assert plan.most_units == len(plan.row) == 1


# Candidates


PAIRS = {
    "packing from splitting": (packing_tokenizer, splitting_tokenizer),
    "splitting from packing": (splitting_tokenizer, packing_tokenizer),
    "reversing from packing": (reversing_tokenizer, packing_tokenizer),
}
every_pair = pytest.mark.parametrize("name", PAIRS)


@cache
def make(name: str, units: Units = "path") -> Pair:
    student, teacher = (make_tokenizer() for make_tokenizer in PAIRS[name])
    loss: Any = SimCT(units=units)
    loss.bind(*(CanonicalVocabulary.from_tokenizer(tokenizer) for tokenizer in (student, teacher)), None)
    return Pair.of(student, teacher, loss=loss)


def planned_units(pair: Pair) -> list[list[tuple[int, int, int, int]]]:
    """The units of each span as lists."""
    plan: Any = pair.plan
    units: list[list[tuple[int, int, int, int]]] = [[] for _ in range(len(pair.spans))]
    columns = plan.student_token, plan.student_length, plan.teacher_token, plan.teacher_length
    for row, place, *unit in zip(plan.row.tolist(), plan.place.tolist(), *(c.tolist() for c in columns), strict=True):
        found = units[int(pair.spans.student_span[row])]
        assert place == len(found)
        found.append(cast(Any, tuple(unit)))
    return units


def searched_units(single: CanonicalVocabulary, writer: CanonicalVocabulary, common: Tensor, path: list[int]) -> set:
    """Tokens of one side that the other writes along the path up to its last token, of all tokens that there are."""
    found = set()
    for text, token in whole_tokens(single).items():
        if token in common.tolist():
            continue
        (written,) = write_bytes(writer, [text])
        if 2 <= len(written) <= len(path) and written[:-1] == path[: len(written) - 1] and written != path:
            found.add((token, written[-1], len(written)))
    return found


@every_pair
def test_units_are_the_texts_that_one_side_has_whole_and_the_other_writes_along_the_span(name: str) -> None:
    pair = make(name)
    partition = VocabularyPartition.strict(pair.student, pair.teacher)
    spans, labels = pair.spans, (pair.batch.student.labels, pair.batch.teachers["t"].tokens.labels)
    bounds = zip(spans.student_first, spans.student_length, spans.teacher_first, spans.teacher_length, strict=True)
    planned, checked, found = planned_units(pair), 0, 0
    for units, (a, n, c, m) in zip(planned, bounds, strict=True):
        if n == m == 1:
            assert units == []
            continue
        ours, theirs = labels[0][a : a + n].tolist(), labels[1][c : c + m].tolist()
        assert units[0] == (ours[-1], n, theirs[-1], m)
        assert len(set(units)) == len(units)
        found += len(units) - 1
        if checked < 12:
            of_teacher = searched_units(pair.teacher, pair.student, partition.teacher_common, ours)
            of_student = searched_units(pair.student, pair.teacher, partition.student_common, theirs)
            expected = {(last, length, token, 1) for token, last, length in of_teacher}
            expected |= {(token, 1, last, length) for token, last, length in of_student}
            assert set(units[1:]) == expected
            checked += 1
    assert found > 20


@every_pair
def test_blocks_of_a_plan_have_the_units_of_their_spans(name: str) -> None:
    pair = make(name)
    student, teacher = pair.rows()
    whole = pair.loss(pair.block(student, teacher)).loss
    half = pair.spans.student_first[len(whole) // 2], pair.spans.teacher_first[len(whole) // 2]
    rest = pair.with_spans(lambda k: k >= len(whole) // 2)
    torch.testing.assert_close(
        pair.loss(rest.block(student, teacher)).loss, whole[len(whole) // 2 :], rtol=0, atol=1e-12
    )
    plan = cast(UnitPlan, pair.plan)
    cut = plan.cut(slice(int(half[0]), len(student)), slice(int(half[1]), len(teacher)))
    assert torch.equal(cut.row + half[0], plan.row[plan.row >= half[0]])
    assert len(cut.cut(slice(0, 0), slice(0, 0)).row) == 0


# The loss


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


def test_masked_text_has_no_units() -> None:
    whole = make("packing from splitting")
    window = len(whole.window["student_ids"])
    pair = Pair.of(
        packing_tokenizer(), splitting_tokenizer(), masked=range(3, window, 5), loss=cast(BytePrefixKL, whole.loss)
    )
    assert 0 < len(cast(UnitPlan, pair.plan).row) < 0.9 * len(cast(UnitPlan, whole.plan).row)
    assert (pair.spans.student_span[cast(UnitPlan, pair.plan).row] < len(pair.spans)).all()
    assert torch.isfinite(pair.loss(pair.block(*pair.rows())).loss).all()


def test_unknown_units_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="units must be one of path, observed, got 'all'"):
        SimCT(units=cast(Any, "all"))


def test_a_planner_crosses_to_the_processes_of_a_data_loader() -> None:
    pair = make("packing from splitting")
    planner = pickle.loads(pickle.dumps(pair.loss.planner))
    plan = planner(pair.batch.student, pair.batch.teachers["t"])
    assert isinstance(planner.__self__, UnitPlanner)
    assert torch.equal(plan.teacher_token, cast(UnitPlan, pair.plan).teacher_token)
