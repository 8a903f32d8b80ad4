"""ESCD: the worked example, its completion sets, which rows complete something, and what it reduces to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_cases import DIVERGENCES
from marginal_pairs import marginal_pair, worked_example
from prefix_pairs import TOKENIZER_PAIRS, Pair, assert_is_token_kl
from small_models import packing_tokenizer, splitting_tokenizer
from split_tokenizers import split_tokenizer
from torch import Tensor

from xtoken_pl import BPM, ESCD
from xtoken_pl.batch import RowCuts
from xtoken_pl.losses import Divergence, RowContent

every_pair = pytest.mark.parametrize("name", TOKENIZER_PAIRS)


@pytest.mark.parametrize(
    ("after", "completion"),
    [((0.2, 0.3, 0.1), 1.1067), ((0.1, 0.5, 0.1), 0.9973), ((0.1, 0.15, 0.05), 1.7305)],
    ids=["published", "moved within a set", "halved"],
)
def test_worked_example_of_the_paper(after: tuple[float, float, float], completion: float) -> None:
    of_bread, of_cat = worked_example(ESCD, **dict(zip(("ead", "eads", "eak"), after, strict=True)))
    assert of_cat == pytest.approx(0.4597, abs=5e-5)
    assert of_bread == pytest.approx(0.4597 + completion, abs=1e-4)


def completion_nats(pair: Pair, student: Tensor, teacher: Tensor) -> Tensor:
    block = pair.block(student, teacher)
    plan: Any = block.plan
    nats: Tensor = pair.loss.completion(plan.completions, block.student, block.teacher)
    return nats


def slow_completions(pair: Pair, student: Tensor, teacher: Tensor) -> dict[int, float]:
    """The completion of every row, by the definition: groups are the connected components of the prefix relation."""
    students, teachers = pair.student.token_bytes, pair.teacher.token_bytes
    free = [v for v, text in enumerate(teachers) if text and text not in set(students)]
    component = {v: v for v in free}

    def root(v: int) -> int:
        return v if component[v] == v else root(component[v])

    by_text: dict[bytes, list[int]] = {}
    for v in free:
        by_text.setdefault(teachers[v], []).append(v)
    for v in free:
        for end in range(1, len(teachers[v]) + 1):
            for other in by_text.get(teachers[v][:end], []):
                component[root(other)] = root(v)
    groups: dict[int, list[int]] = {}
    for v in free:
        groups.setdefault(root(v), []).append(v)
    found: dict[int, float] = {}
    boundary, labels = pair.plan.boundary, pair.batch.student.labels.tolist()
    span, places = pair.spans.student_span.tolist(), pair.batch.student.rows.tolist()
    for r, t in zip(boundary.row.tolist(), boundary.teacher.tolist(), strict=True):
        if r + 1 == len(places) or places[r + 1] != places[r] + 1 or span[r + 1] == len(pair.spans):
            continue
        a, q, p = students[labels[r]], teacher[t].exp(), student[r + 1].exp()
        for members in groups.values():
            stem = min((teachers[v] for v in members), key=len)
            if not a or stem == a or not stem.startswith(a):
                continue
            targets = [s for s, text in enumerate(students) if text and text.startswith(stem[len(a) :])]
            if targets:
                nats = -float(q[members].sum() * p[targets].sum().log())
                found[r + 1] = found.get(r + 1, 0.0) + nats
    return found


@every_pair
@pytest.mark.parametrize("masked", [(), range(5, 400, 7)], ids=["whole", "masked"])
def test_completions_are_those_of_the_definition(name: str, masked: Any) -> None:
    student, teacher = TOKENIZER_PAIRS[name]
    pair = marginal_pair(ESCD, student(), teacher(), masked=masked)
    ours, theirs = pair.rows()
    nats = completion_nats(pair, ours, theirs)
    expected = torch.zeros_like(nats)
    for row, value in slow_completions(pair, ours, theirs).items():
        expected[row] = value
    torch.testing.assert_close(nats, expected, rtol=0, atol=1e-10)
    assert (nats > 1e-3).sum() > (3 if masked else 10)


def boundary_loss(pair: Pair, student: Tensor, teacher: Tensor) -> Tensor:
    """The loss of every span under BPM without the positions inside tokens."""
    block = pair.block(student, teacher)
    plan: Any = block.plan
    none = plan.inside.cut(slice(0, 0), slice(0, 0))
    loss: Tensor = pair.loss(replace(block, plan=replace(plan, inside=none))).loss
    return loss


@every_pair
def test_it_is_bpm_at_boundaries_and_completions_behind_them(name: str) -> None:
    student, teacher = TOKENIZER_PAIRS[name]
    pair = marginal_pair(ESCD, student(), teacher())
    other = marginal_pair(BPM, student(), teacher())
    ours, theirs = pair.rows()
    of_boundaries = boundary_loss(other, ours, theirs)
    of_completions = pair.spans.sum_student_rows(completion_nats(pair, ours, theirs))
    torch.testing.assert_close(
        pair.loss(pair.block(ours, theirs)).loss, of_boundaries + of_completions, rtol=0, atol=1e-10
    )


def test_what_the_next_span_is_to_complete_keeps_both_spans_in_a_block() -> None:
    pair = marginal_pair(ESCD, splitting_tokenizer(), packing_tokenizer())
    plan: Any = pair.plan
    inner = RowCuts.from_spans(len(pair.batch.student.rows), {"t": pair.spans})
    cuts = RowCuts.from_spans(len(pair.batch.student.rows), {"t": pair.spans}, {"t": plan})
    span = pair.spans.student_span
    crossing = [row for row in plan.completions.row.tolist() if span[row] != span[row + 1]]
    assert len(crossing) > 10
    assert len(cuts.student) > 10
    assert set(inner.student.tolist()) - set(cuts.student.tolist()) == {row + 1 for row in crossing}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_same_tokenizer_gives_token_kl(divergence: Divergence) -> None:
    pair = marginal_pair(ESCD, packing_tokenizer(), packing_tokenizer(), divergence=divergence)
    assert_is_token_kl(pair, divergence, atol=1e-10)


def test_special_tokens_complete_nothing_and_need_no_completion() -> None:
    student = split_tokenizer(["a", "b"], special=["<eos>", "<mine>"])
    teacher = split_tokenizer(["a", "b", "ab"], special=["<eos>", "<yours>"])
    pair = marginal_pair(ESCD, student, teacher, "bab")
    texts = pair.student.token_bytes
    assert [texts[s] for s in pair.batch.student.labels] == [b"a", b"b", b""]
    ours, theirs = pair.rows()
    nats = completion_nats(pair, ours, theirs)
    mass = theirs[0, pair.teacher.token_bytes.index(b"ab")].exp()
    assert nats.tolist() == pytest.approx([0.0, -float(mass * ours[1, texts.index(b"b")]), 0.0], abs=1e-12)


def test_groups_that_no_kept_token_reaches_are_compared_as_one() -> None:
    student = split_tokenizer(["x", "a", "b", "c", "d", "e"])
    teacher = split_tokenizer(["x", "a", "ab", "ac", "ad", "ae"])
    pair = marginal_pair(ESCD, student, teacher, "xab", teacher_top_k=2)
    texts = pair.teacher.token_bytes
    probs = torch.full((2, len(texts)), 1e-9, dtype=torch.float64)
    for text, prob in {b"ab": 0.05, b"ac": 0.4, b"ad": 0.3, b"ae": 0.1, b"a": 0.15}.items():
        probs[0, texts.index(text)] = prob
    teacher_rows = probs.log().log_softmax(-1)
    ours, _ = pair.rows()
    p = {text: ours[1, pair.student.token_bytes.index(text)].exp() for text in (b"b", b"c", b"d", b"e")}
    # Kept: ac and ad, the best, and ab, the observed one; a, ae, x and <eos> share the rest.
    share = (1 - 0.05 - 0.4 - 0.3) / 4
    expected = -sum(m * p[text].log() for text, m in ((b"b", 0.05), (b"c", 0.4), (b"d", 0.3), (b"e", share)))
    without = marginal_pair(BPM, student, teacher, "xab", teacher_top_k=2)
    plan: Any = pair.plan
    block = pair.block(ours, teacher_rows)
    only_completion = pair.loss(block).loss.sum() - boundary_loss(without, ours, teacher_rows).sum()
    assert len(plan.completions.row) == 1
    assert only_completion.item() == pytest.approx(expected.item(), abs=1e-6)
    pair.loss.teacher_top_k = without.loss.teacher_top_k = 1
    share = (1 - 0.05 - 0.4) / 5
    merged = -(2 * share * (p[b"d"] + p[b"e"]).log() + 0.05 * p[b"b"].log() + 0.4 * p[b"c"].log())
    only_completion = pair.loss(block).loss.sum() - boundary_loss(without, ours, teacher_rows).sum()
    assert only_completion.item() == pytest.approx(merged.item(), abs=1e-6)


def test_a_certain_completion_costs_nothing() -> None:
    pair = marginal_pair(ESCD, split_tokenizer(["x", "Br", "ead"]), split_tokenizer(["x", "Bread"]), "xBread")
    certain = [torch.full_like(rows, -50.0) for rows in pair.rows()]
    labels = pair.batch.student.labels, pair.batch.teachers["t"].tokens.labels
    for rows, tokens in zip(certain, labels, strict=True):
        rows[torch.arange(len(rows)), tokens] = 0.0
    ours, theirs = (rows.log_softmax(-1) for rows in certain)
    assert pair.loss(pair.block(ours, theirs)).loss.abs().max() < 1e-12
    assert completion_nats(pair, ours - math.log(2), theirs)[1].item() == pytest.approx(math.log(2), abs=1e-12)


def test_it_reads_every_row_of_the_teacher() -> None:
    assert ESCD().row_needs == RowContent("all")
    assert ESCD(teacher_top_k=8).row_needs == RowContent("all", top_k=8)
