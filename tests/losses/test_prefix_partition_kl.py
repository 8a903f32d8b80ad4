"""The partition KL over prefixes against its definition, span by span."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from loss_cases import DIVERGENCES
from plain_divergences import listed_divergence
from prefix_pairs import TOKENIZER_PAIRS, Pair, assert_is_token_kl
from small_models import packing_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from vocabulary_relations import spelling

from xtoken_pl import CanonicalVocabulary, PrefixPartitionKL
from xtoken_pl.losses import Divergence, RowContent
from xtoken_pl.utilities.errors import UserError

TEXT = " In 2024, 1234 + 56 = 1290 naive unhappinesses; self.assertEqual(first, second)"
every_pair = pytest.mark.parametrize("name", TOKENIZER_PAIRS)
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def make(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, text: str = TEXT, **options: Any) -> Pair:
    loss: Any = PrefixPartitionKL(**options)
    loss.bind(*(CanonicalVocabulary.from_tokenizer(tokenizer) for tokenizer in (student, teacher)), None)
    return Pair.of(student, teacher, text, loss=loss)


def plain(p: list[float], q: list[float], divergence: Divergence) -> float:
    """The divergence of two partitions, given without the rest."""
    return listed_divergence([*q, max(1 - sum(q), 1e-300)], [*p, max(1 - sum(p), 1e-300)], divergence)


@every_divergence
@every_pair
def test_every_span_equals_the_definition(name: str, divergence: Divergence) -> None:
    student, teacher = TOKENIZER_PAIRS[name]
    pair = make(student(), teacher(), divergence=divergence, first_weight=0.5)
    loss: Any = pair.loss
    ours, theirs = pair.rows()
    p, q = ours.exp(), theirs.exp()
    common = dict(zip(loss.student_common.tolist(), loss.teacher_common.tolist(), strict=True))
    tau, sigma = spelling(pair.student, pair.teacher), spelling(pair.teacher, pair.student)
    labels, tokens = pair.batch.student.labels.tolist(), pair.batch.teachers["t"].tokens.labels.tolist()
    spans, found = pair.spans, pair.loss(pair.block(ours, theirs)).loss
    kinds = set()
    for k in range(len(spans)):
        first, other = int(spans.student_first[k]), int(spans.teacher_first[k])
        n, m = int(spans.student_length[k]), int(spans.teacher_length[k])
        a, b = tuple(labels[first : first + n]), tuple(tokens[other : other + m])
        if n == m == 1:
            expected = plain(p[first, list(common)].tolist(), q[other, list(common.values())].tolist(), divergence)
            assert found[k].item() == pytest.approx(expected, abs=1e-9)
            continue
        cells = {(a[-1], b[-1])}
        if n == 1:
            cells |= {(s, t[-1]) for s, t in tau.items() if len(t) == m and t[:-1] == b[:-1] and s != a[-1]}
        if m == 1:
            cells |= {(s[-1], t) for t, s in sigma.items() if len(s) == n and s[:-1] == a[:-1] and t != b[-1]}
        kinds.add((min(n, 2), min(m, 2), len(cells) > 1))
        before = math.prod(p[first + i, a[i]].item() for i in range(n - 1))
        teacher_before = math.prod(q[other + i, b[i]].item() for i in range(m - 1))
        expected = plain(
            [before * p[first + n - 1, x].item() for x, _ in cells],
            [teacher_before * q[other + m - 1, y].item() for _, y in cells],
            divergence,
        )
        last = {x for x, _ in cells}
        left = [(s, t) for s, t in common.items() if s != a[0] and t != b[0] and s not in last]
        expected += 0.5 * plain(
            [p[first, s].item() for s, _ in left], [q[other, t].item() for _, t in left], divergence
        )
        assert found[k].item() == pytest.approx(expected, abs=1e-9)
    assert len(kinds) >= 2


@every_divergence
def test_the_same_tokenizer_gives_token_kl(divergence: Divergence) -> None:
    pair = make(packing_tokenizer(), packing_tokenizer(), divergence=divergence)
    assert_is_token_kl(pair, divergence, atol=1e-9)


def test_weight_zero_leaves_the_first_rows_of_longer_spans_out() -> None:
    student, teacher = (make() for make in TOKENIZER_PAIRS["reversing from packing"])
    pairs = [make(student, teacher, first_weight=weight) for weight in (0.0, 0.5, 1.0)]
    ours, theirs = pairs[0].rows()
    none, half, whole = (pair.loss(pair.block(ours, theirs)).loss for pair in pairs)
    torch.testing.assert_close(half - none, whole - half, rtol=0, atol=1e-10)
    is_longer = (pairs[0].spans.student_length > 1) | (pairs[0].spans.teacher_length > 1)
    assert torch.equal(whole > none + 1e-9, is_longer)


@every_pair
def test_k_pairs_of_each_row_are_never_above_the_exact_loss(name: str) -> None:
    student, teacher = (make() for make in TOKENIZER_PAIRS[name])
    exact, all_kept, few = (make(student, teacher, teacher_top_k=k) for k in (None, 10_000, 5))
    ours, theirs = exact.rows()
    losses = [pair.loss(pair.block(ours, theirs)).loss for pair in (exact, all_kept, few)]
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-12)
    assert (losses[2] <= losses[0] + 1e-10).all()
    assert (losses[2] < losses[0] - 1e-3).any()


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(UserError, match=r"first_weight must be a finite number >= 0, got -1"):
        PrefixPartitionKL(first_weight=-1.0)


def test_it_reads_every_row_of_the_teacher() -> None:
    assert PrefixPartitionKL(teacher_top_k=3).row_needs == RowContent("all", top_k=3)


@every_divergence
@pytest.mark.parametrize(("name", "side"), [("splitting from packing", 0), ("packing from splitting", 1)])
def test_an_improbable_span_is_as_exact_in_single_precision(name: str, side: int, divergence: Divergence) -> None:
    """The probability of the whole span is below the smallest number; its logarithm is not."""
    student, teacher = (make() for make in TOKENIZER_PAIRS[name])
    pair = make(student, teacher, divergence=divergence, first_weight=0.0)
    rows, labels = list(pair.rows()), (pair.batch.student.labels, pair.batch.teachers["t"].tokens.labels)
    rows[side][torch.arange(len(labels[side])), labels[side]] = -45.0
    results = []
    for dtype in (torch.float64, torch.float32):
        leaf = rows[0].detach().to(dtype, copy=True).requires_grad_()
        nats = pair.loss(pair.block(leaf.log_softmax(-1), rows[1].to(dtype).log_softmax(-1))).loss
        nats.sum().backward()
        results.append((nats.detach().double(), cast(Tensor, leaf.grad).double()))
    assert (pair.spans.student_length, pair.spans.teacher_length)[side].max() > 1  # at most e^-90, 2e-31 is e^-70.7
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
