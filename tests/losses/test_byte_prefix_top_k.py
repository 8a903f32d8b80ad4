"""The byte-prefix KL over the teacher's k most probable tokens, against its slow reference and against whole rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from kept_rows import keep_and_spread
from loss_cases import DIVERGENCES, LossCase, TextRows, slow_byte_prefix_kl
from loss_tester import LossTester
from plain_divergences import grouped_divergence
from prefix_pairs import TEXT, Pair
from reference_byte_prefix import divergence_of
from small_models import numeral_tokenizer, packing_tokenizer, reversing_tokenizer, splitting_tokenizer
from torch import Tensor

from xtoken_pl import BytePrefixKL, ProjectionKL, TokenKL
from xtoken_pl.batch import KnownRows
from xtoken_pl.losses import Divergence
from xtoken_pl.losses.base import observed_log_probs
from xtoken_pl.losses.group_divergence import group_divergence
from xtoken_pl.scoring.tasks import GivenRows, TeacherTask
from xtoken_pl.teachers.cache.row_format import RowFormat

PAIRS = {
    "packing from splitting": (packing_tokenizer, splitting_tokenizer),
    "splitting from packing": (splitting_tokenizer, packing_tokenizer),
    "reversing from packing": (reversing_tokenizer, packing_tokenizer),
    "small from large": (lambda: splitting_tokenizer(320), lambda: reversing_tokenizer(1200)),
}
SHORT = " 1234 + 56 = 1290; naive unhappiness (17%)"
every_pair = pytest.mark.parametrize("name", PAIRS)
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def make(name: str, top_k: int | None, divergence: Divergence = "forward", text: str = SHORT, **options: Any) -> Pair:
    student, teacher = PAIRS[name]
    return Pair.of(student(), teacher(), text, divergence=divergence, teacher_top_k=top_k, **options)


def scored(pair: Pair, student: Tensor, teacher: Tensor, top_k: int | None) -> tuple[Tensor, Tensor]:
    """The loss of every span and the gradient of their weighted sum, with ``top_k`` in place of the pair's."""
    before, pair.loss.teacher_top_k = pair.loss.teacher_top_k, top_k
    leaf = student.clone().requires_grad_()
    nats = pair.loss(pair.block(leaf, teacher)).loss
    pair.loss.teacher_top_k = before
    (gradient,) = torch.autograd.grad((torch.linspace(0.5, 1.5, len(nats)).to(nats) * nats).sum(), leaf)
    return nats.detach(), gradient


def spread_rows(pair: Pair, teacher: Tensor, top_k: int) -> Tensor:
    """The rows as a cache or a server with ``top_k`` tokens gives them."""
    labels = pair.batch.teachers["t"].tokens.labels.tolist()
    rows = [keep_and_spread(row, label, top_k)[0] for row, label in zip(teacher.exp().tolist(), labels, strict=True)]
    return torch.tensor(rows, dtype=torch.float64).log()


@every_divergence
@every_pair
@pytest.mark.parametrize("top_k", [1, 6, 40])
def test_value_and_gradient_equal_the_slow_reference(name: str, divergence: Divergence, top_k: int) -> None:
    pair = make(name, top_k, divergence)
    student, teacher = pair.rows()
    leaf = student.clone().requires_grad_()
    nats = group_divergence(leaf, *pair.groups(teacher), divergence=divergence)
    slow = pair.slow_groups(teacher)
    assert len(slow) > 15
    assert sum(("rest", 0) in groups for groups in slow.values()) > 15
    plain = student.clone().requires_grad_()
    expected = torch.stack([grouped_divergence(groups, plain[row].exp(), divergence) for row, groups in slow.items()])
    torch.testing.assert_close(nats[list(slow)], expected, rtol=0, atol=1e-10)
    weights = torch.linspace(0.5, 1.5, len(slow), dtype=torch.float64)
    ours, theirs = ((weights * each).sum() for each in (nats[list(slow)], expected))
    gradients = [torch.autograd.grad(*each)[0] for each in ((ours, leaf), (theirs, plain))]
    assert gradients[1].abs().max() > 0.1
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@every_divergence
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("teacher_split", [1, 2, 3])
def test_tokens_that_the_text_rules_out_stay_unreachable(
    divergence: Divergence, teacher_split: int, top_k: int
) -> None:
    student_side = numeral_tokenizer(longest_token=3, longest_split=1, letters="x")
    teacher_side = numeral_tokenizer(longest_token=teacher_split, longest_split=teacher_split, letters="x")
    pair = Pair.of(student_side, teacher_side, "01101001101", divergence=divergence, teacher_top_k=top_k)
    student, teacher = pair.rows()
    nats = group_divergence(student, *pair.groups(teacher), divergence=divergence)
    expected = pair.slow_nats(student, teacher)
    assert len(expected) > 8
    assert nats[list(expected)].tolist() == pytest.approx(list(expected.values()), abs=1e-10, rel=1e-10)


@every_divergence
def test_masked_text_is_not_read(divergence: Divergence) -> None:
    whole = make("packing from splitting", 5)
    masked = range(3, len(whole.window["student_ids"]), 5)
    pair = make("packing from splitting", 5, divergence, masked=masked)
    student, teacher = pair.rows()
    nats = group_divergence(student, *pair.groups(teacher), divergence=divergence)
    for row, expected in pair.slow_nats(student, teacher).items():
        assert nats[row].item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("llama3", "smollm2"), ("smollm2", "qwen3")], ids=" from ".join)
def test_real_tokenizers_equal_the_slow_reference(names: tuple[str, str], request: pytest.FixtureRequest) -> None:
    sides = [request.getfixturevalue(name) for name in names]
    pair = Pair.of(*sides, " In 12345, naïve 數", teacher_top_k=16)
    student, teacher = pair.rows(scale=4.0)
    groups, slow = pair.groups(teacher), pair.slow_groups(teacher)
    assert len(slow) >= 6
    for divergence in DIVERGENCES:
        nats = group_divergence(student, *groups, divergence=divergence)
        for row, listed in slow.items():
            expected = divergence_of(listed, student[row].exp().tolist(), divergence)
            assert nats[row].item() == pytest.approx(expected, abs=1e-9, rel=1e-9)


@every_divergence
@every_pair
def test_rows_of_a_cache_or_server_give_what_the_live_teacher_gives(name: str, divergence: Divergence) -> None:
    pair = make(name, None, divergence)
    student, teacher = pair.rows()
    for top_k in (1, 6, 40):
        live = scored(pair, student, teacher, top_k)
        torch.testing.assert_close(
            scored(pair, student, spread_rows(pair, teacher, top_k), top_k), live, rtol=0, atol=1e-10
        )
        more = spread_rows(pair, teacher, 60)
        torch.testing.assert_close(scored(pair, student, more, top_k), live, rtol=0, atol=1e-10)


@every_divergence
@pytest.mark.parametrize("top_k", [6, 40])
@pytest.mark.parametrize("precision", [16, 32])
def test_stored_tokens_are_kept_where_the_observed_one_is_as_probable(
    divergence: Divergence, top_k: int, precision: int
) -> None:
    """A teacher in 16 bits gives many tokens of a row the same probability."""
    pair = make("packing from splitting", top_k, divergence, TEXT)
    student, teacher = pair.rows()
    student, teacher = student.float(), (teacher + 12).bfloat16().float().log_softmax(-1)
    view, holes = pair.batch.teachers["t"], torch.from_numpy(~pair.teacher.exists)
    labels, spans = view.tokens.labels, view.spans
    row_format = RowFormat("all", top_k, precision, len(holes), len(holes) - int(holes.sum()))
    observed = observed_log_probs(teacher, labels)
    arrays = row_format.encode(teacher, labels) | row_format.encode_observed(observed, observed, spans)
    given = GivenRows(KnownRows.from_windows([arrays]), labels, holes, row_format.num_tokens)
    side = TeacherTask(given, spans, pair.loss).side(slice(0, len(labels)), slice(0, len(spans)), None)
    block = pair.block(student, teacher)
    live, known = (pair.loss(each).loss for each in (block, replace(block, teacher=side)))
    # Off by 2.5e-4 at most, a log-probability moves the loss by its probability times 1 + log p/q, below 20 here.
    torch.testing.assert_close(known, live, rtol=0, atol=1e-5 if precision == 32 else 20 * 2.5e-4)


@every_divergence
@every_pair
def test_merging_never_raises_the_loss_and_the_groups_keep_all_mass(name: str, divergence: Divergence) -> None:
    for top_k in (1, 6, 40):
        pair = make(name, top_k, divergence)
        student, teacher = pair.rows()
        groups = pair.groups(teacher)
        apart = [replace(part, merged=None) for part in groups]
        merged, split = (group_divergence(student, *each, divergence=divergence) for each in (groups, apart))
        assert (merged <= split + 1e-12).all()
        assert (merged < split - 1e-6).any()
        assert (merged >= -1e-12).all()
        reference = pair.reference()
        is_written = {v for v, text in enumerate(pair.teacher.token_bytes) if reference.phi(text) is not None}
        dropped = [v for v in range(len(pair.teacher)) if v not in reference.leads and v not in is_written]
        boundary = pair.plan.boundary
        spread = spread_rows(pair, teacher, top_k)
        rows = spread[boundary.teacher].exp()
        rows[:, dropped] = 0.0
        rows[boundary.excluded_position, boundary.excluded_token] = 0.0
        # Relative to what follows a token that has ended, what would follow if it had gone on.
        more = torch.tensor([goes_on(pair, spread, place) for place in range(len(rows))], dtype=torch.float64)
        total = groups[0].add_up(groups[0].mass)
        torch.testing.assert_close(total, (rows.sum(-1) + more) / (1 + more), rtol=0, atol=1e-12)


def goes_on(pair: Pair, rows: Tensor, place: int) -> float:
    """Probability of longer teacher tokens than the one that ends at a boundary, by that of the latter."""
    boundary, reference = pair.plan.boundary, pair.reference()
    row, student_row = int(boundary.teacher[place]) - 1, int(boundary.row[place])
    if boundary.low[place] == boundary.high[place]:
        return 0.0
    labels, student = pair.batch.teachers["t"].tokens.labels, pair.batch.student
    ended, before = int(labels[row]), int(student.input_ids.flatten()[student.rows[student_row]])
    probs = rows[row].exp()
    longer = reference.longer_tokens(pair.teacher.token_bytes[ended], pair.student.token_bytes[before])
    return float(sum(probs[v] for v, _ in longer) / probs[ended])


@every_divergence
@every_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k_of_all_tokens_is_exactly_the_whole_distribution(
    name: str, divergence: Divergence, dtype: torch.dtype
) -> None:
    pair = make(name, None, divergence)
    student, teacher = (rows.to(dtype) for rows in pair.rows())
    size = len(pair.teacher)
    for top_k in (size, size + 7):
        assert_same(scored(pair, student, teacher, top_k), scored(pair, student, teacher, None))
    # Ids that no token has do not count.
    holes = [v for v in range(5, size, 11) if v not in pair.batch.teachers["t"].tokens.labels]
    teacher[:, holes] = -math.inf
    teacher = teacher.log_softmax(-1)
    for top_k in (size - len(holes), size - 1):
        assert_same(scored(pair, student, teacher, top_k), scored(pair, student, teacher, None))


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


@every_divergence
def test_the_same_tokenizer_gives_token_kl_where_the_text_is_among_the_k(divergence: Divergence) -> None:
    pair = Pair.of(packing_tokenizer(), packing_tokenizer(), divergence=divergence, teacher_top_k=10)
    student, teacher = pair.rows()
    labels = pair.batch.teachers["t"].tokens.labels
    among = (teacher.topk(10).indices == labels[:, None]).any(-1)[pair.spans.teacher_first]
    ours, theirs = (
        loss(pair.block(student, teacher)).loss
        for loss in (pair.loss, TokenKL(divergence=divergence, teacher_top_k=10))
    )
    assert 20 < among.sum() < len(among)
    torch.testing.assert_close(ours[among], theirs[among], rtol=0, atol=1e-10)
    assert (ours[~among] >= theirs[~among] - 1e-12).all()  # the observed token is one more


@every_divergence
def test_the_deviation_shrinks_as_k_grows(divergence: Divergence) -> None:
    pair = make("small from large", None, divergence)
    student, teacher = pair.rows()
    exact = scored(pair, student, teacher, None)
    deviations = [
        [(ours - theirs).norm().item() for ours, theirs in zip(scored(pair, student, teacher, k), exact, strict=True)]
        for k in (4, 16, 64, 256, 1000)
    ]
    for of_kind in zip(*deviations, strict=True):
        assert list(of_kind) == sorted(of_kind, reverse=True)
        assert of_kind[-1] < 0.5 * of_kind[0]


@every_divergence
def test_a_broken_row_shows(divergence: Divergence) -> None:
    pair = make("packing from splitting", 5, divergence)
    student, teacher = pair.rows()
    teacher[0] = math.nan
    nats = group_divergence(student, *pair.groups(teacher), divergence=divergence)
    assert nats[pair.plan.boundary.row[pair.plan.boundary.teacher == 0]].isnan().all()


@pytest.mark.parametrize("kind", [BytePrefixKL, ProjectionKL])
@pytest.mark.parametrize("value", [0, -1, True, 2.5])
def test_wrong_k_is_refused_by_name(kind: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"teacher_top_k must be .*>= 1, got {value}; None keeps the whole"):
        kind(teacher_top_k=value)


def test_a_source_of_k_tokens_limits_the_loss() -> None:
    loss = BytePrefixKL()
    assert loss.limit_teacher_tokens(64) == "teacher_top_k None -> 64"
    assert loss.limit_teacher_tokens(100) is None
    assert "divergence=forward, teacher_top_k=64" in repr(loss)


CASES = [
    LossCase(BytePrefixKL, slow_byte_prefix_kl, {"divergence": name, "teacher_top_k": 5}, TextRows())
    for name in DIVERGENCES
]


@pytest.mark.parametrize("case", CASES, ids=str)
class TestTopK(LossTester):
    """Blocks, precisions, temperature, finite differences and edges as of every loss."""


def test_every_case_merges_groups_of_both_kinds() -> None:
    rows = CASES[0].rows()
    groups = cast(Pair, rows.pair).groups(rows.teacher.log_softmax(-1))
    assert all(part.merged is not None and all(merged.any() for merged in part.merged) for part in groups)
