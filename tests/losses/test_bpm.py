"""BPM: the worked example, where the teacher's mass goes, and what it reduces to."""

from __future__ import annotations

import math

import pytest
import torch
from loss_cases import DIVERGENCES
from marginal_pairs import marginal_pair, worked_example
from prefix_pairs import TOKENIZER_PAIRS, assert_is_token_kl
from small_models import packing_tokenizer, splitting_tokenizer
from split_tokenizers import split_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl import BPM
from xtoken_pl.losses import Divergence, RowContent

every_pair = pytest.mark.parametrize("name", TOKENIZER_PAIRS)


@pytest.mark.parametrize(
    ("after", "inside"), [((0.2, 0.3, 0.1), 0.6895), ((0.1, 0.5, 0.1), 0.8841)], ids=["published", "moved"]
)
def test_worked_example_of_the_paper(after: tuple[float, float, float], inside: float) -> None:
    of_bread, of_cat = worked_example(BPM, **dict(zip(("ead", "eads", "eak"), after, strict=True)))
    assert of_cat == pytest.approx(0.4597, abs=5e-5)
    assert of_bread - of_cat == pytest.approx(inside, abs=5e-5)


@every_pair
def test_all_of_a_row_is_somewhere_at_a_boundary(name: str) -> None:
    student, teacher = TOKENIZER_PAIRS[name]
    pair = marginal_pair(BPM, student(), teacher())
    groups, _ = pair.groups(pair.rows()[1])
    total = groups.column_mass.sum(-1).index_add(0, groups.branch_position, groups.branch_mass)
    missing = pair.loss.mass.teacher_column < 0
    rows = pair.rows()[1].exp()[pair.plan.boundary.teacher]
    torch.testing.assert_close(total, 1 - rows[:, missing].sum(-1), rtol=0, atol=1e-12)


@every_pair
def test_mass_goes_to_the_longest_prefix_but_for_the_path(name: str) -> None:
    student, teacher = TOKENIZER_PAIRS[name]
    pair = marginal_pair(BPM, student(), teacher(), masked=range(30, 60))
    _, rows = pair.rows()
    labels, tokens = pair.batch.student.labels.tolist(), pair.batch.teachers["t"].tokens.labels.tolist()
    texts = {text: s for s, text in reversed(list(enumerate(pair.student.token_bytes))) if text}
    num_paths = 0
    for groups, positions in zip(pair.groups(rows), (pair.plan.boundary, pair.plan.inside), strict=True):
        for place in range(0, len(positions.row), 3):
            first, consumed = int(positions.teacher[place]), int(positions.consumed[place])
            expected = _expected(pair.teacher.token_bytes, rows[first].exp().tolist(), texts, tokens[first], consumed)
            a = labels[positions.row[place]]
            rest = len(pair.student.token_bytes[a]) - (len(pair.teacher.token_bytes[tokens[first]]) - consumed)
            last, moved = first, rows[first, tokens[first]].item()
            while rest > 0:
                last += 1
                rest -= len(pair.teacher.token_bytes[tokens[last]])
                moved += rows[last, tokens[last]].item()
            if rest == 0 and last > first:
                num_paths += 1
                heir = _longest(texts, pair.teacher.token_bytes[tokens[first]][consumed:])
                expected[a] = expected.get(a, 0.0) + math.exp(moved)
                expected[heir] -= math.exp(moved)
            for s, mass in expected.items():
                assert _mass_of(pair.loss, groups, place, s) == pytest.approx(mass, abs=1e-12)
    assert num_paths > 3 or name == "splitting from packing"


def _expected(
    texts: list[bytes], probs: list[float], students: dict[bytes, int], observed: int, consumed: int
) -> dict[int | None, float]:
    there = texts[observed][:consumed]
    expected: dict[int | None, float] = {}
    for v, text in enumerate(texts):
        if text.startswith(there) and len(text) > consumed:
            heir = _longest(students, text[consumed:])
            expected[heir] = expected.get(heir, 0.0) + probs[v]
    return expected


def _longest(students: dict[bytes, int], text: bytes) -> int | None:
    return next((students[text[:end]] for end in range(len(text), 0, -1) if text[:end] in students), None)


def _mass_of(loss: BPM, groups: object, place: int, s: int | None) -> float:
    """The mass of the group of a student token."""
    assert s is not None
    found: Tensor
    size = len(loss.mass.byte_class)
    found = torch.nonzero(groups.member == place * size + s)  # type: ignore[attr-defined]
    if len(found):
        return float(groups.branch_mass[groups.member_branch[found[0]]])  # type: ignore[attr-defined]
    column = s if groups.sums is None else int(groups.sums.column[s])  # type: ignore[attr-defined]
    return float(groups.column_mass[place, column])  # type: ignore[attr-defined]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_same_tokenizer_gives_token_kl(divergence: Divergence) -> None:
    pair = marginal_pair(BPM, packing_tokenizer(), packing_tokenizer(), divergence=divergence)
    assert_is_token_kl(pair, divergence, atol=1e-10)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_what_has_no_counterpart_is_one_group_on_both_sides(divergence: Divergence) -> None:
    """Special tokens of the teacher alone, against the student tokens that no teacher token counts for."""
    student = split_tokenizer(["a", "b", "ab", "abb"], special=["<eos>", "<mine>"])
    teacher = split_tokenizer(["a", "b"], special=["<eos>", "<yours>", "<others>"])
    pair = marginal_pair(BPM, student, teacher, "baabb", divergence=divergence)
    p, q = pair.rows()
    texts, labels = pair.student.token_bytes, pair.batch.student.labels.tolist()
    assert [texts[s] for s in labels[:2]] == [b"a", b"abb"]
    # Of the second row: a (without the path), b, <eos>, the observed abb, and all the rest: ab and <mine>.
    ids = [texts.index(b"a"), texts.index(b"b"), pair.student.roles["eos"], texts.index(b"abb")]
    q = q.exp()
    a, b = pair.teacher.token_bytes.index(b"a"), pair.teacher.token_bytes.index(b"b")
    path = q[1, a] * q[2, b] * q[3, b]
    t = torch.stack([q[1, a] - path, q[1, b], q[1, pair.teacher.roles["eos"]], path])
    t = torch.cat((t, (1 - t.sum())[None]))
    s = p[1].exp()[ids]
    s = torch.cat((s, (1 - s.sum())[None]))
    middle = (t + s) / 2
    forward, reverse = (t * (t / s).log()).sum(), (s * (s / t).log()).sum()
    mixed = (t * (t / middle).log() + s * (s / middle).log()).sum() / 2
    expected = {"forward": forward, "reverse": reverse, "jensen_shannon": mixed}[divergence]
    assert pair.loss(pair.block(p, q.log())).loss[1].item() == pytest.approx(expected.item(), abs=1e-10)


def test_student_tokens_of_equal_bytes_count_as_one(
    llama2_style: PreTrainedTokenizerFast, smollm2: PreTrainedTokenizerFast
) -> None:
    """A digit is a byte piece and a token of its own: the teacher cannot mean the one without the other."""
    pair = marginal_pair(BPM, llama2_style, smollm2, " An extraordinarily unhappy 17 of 234.")
    texts, byte_class = pair.student.token_bytes, pair.loss.mass.byte_class
    digits = [s for s, text in enumerate(texts) if text == b"7"]
    assert len(digits) == 2
    assert len({int(byte_class[s]) for s in digits}) == 1
    student, teacher = pair.rows()
    before = pair.loss(pair.block(student, teacher)).loss
    swapped = student.clone()
    swapped[:, digits] = student[:, digits].flip(1)
    torch.testing.assert_close(pair.loss(pair.block(swapped, teacher)).loss, before, rtol=0, atol=1e-10)
    assert len(pair.plan.inside.row) > 0


def test_masked_tokens_leave_the_other_spans_as_they_are() -> None:
    pairs = [
        marginal_pair(BPM, packing_tokenizer(), splitting_tokenizer(), masked=masked) for masked in ((), range(40, 70))
    ]
    student, teacher = pairs[0].rows()
    whole = pairs[0].loss(pairs[0].block(student, teacher)).loss
    kept = torch.isin(pairs[0].batch.student.rows, pairs[1].batch.student.rows)
    seen = torch.isin(pairs[0].batch.teachers["t"].tokens.rows, pairs[1].batch.teachers["t"].tokens.rows)
    part = pairs[1].loss(pairs[1].block(student[kept], teacher[seen])).loss
    num_before = int((pairs[1].batch.student.rows[pairs[1].spans.student_first] < 39).sum())
    assert 20 < num_before < len(part) < len(whole)
    torch.testing.assert_close(part[:num_before], whole[:num_before], rtol=0, atol=1e-12)
    torch.testing.assert_close(part[num_before:], whole[-(len(part) - num_before) :], rtol=0, atol=1e-12)


@every_pair
def test_fewer_teacher_tokens_never_raise_the_loss_of_their_rows(name: str) -> None:
    student, teacher = TOKENIZER_PAIRS[name]
    pair = marginal_pair(BPM, student(), teacher(), teacher_top_k=len(teacher()))
    ours, theirs = pair.rows()
    exact = pair.loss(pair.block(ours, theirs)).loss
    pair.loss.teacher_top_k = None
    torch.testing.assert_close(pair.loss(pair.block(ours, theirs)).loss, exact, rtol=0, atol=1e-12)
    for top_k in (1, 5, 40):
        spread = _spread(theirs, pair.batch.teachers["t"].tokens.labels, top_k)
        pair.loss.teacher_top_k = None
        finer = pair.loss(pair.block(ours, spread)).loss
        pair.loss.teacher_top_k = top_k
        coarser = pair.loss(pair.block(ours, theirs)).loss
        assert (coarser <= finer + 1e-9).all()
        assert (coarser < finer - 1e-3).any()


def _spread(rows: Tensor, labels: Tensor, top_k: int) -> Tensor:
    """Rows in which all tokens but the ``top_k`` best and the observed one share what they have."""
    kept = torch.zeros_like(rows, dtype=torch.bool).scatter(1, rows.topk(top_k).indices, value=True)
    kept = kept.scatter(1, labels[:, None], value=True)
    tail = rows.exp().masked_fill(kept, 0.0).sum(-1) / (~kept).sum(-1)
    return torch.where(kept, rows, tail.log()[:, None])


def test_it_reads_every_row_of_the_teacher() -> None:
    assert BPM().row_needs == RowContent("all")
    assert BPM(teacher_top_k=8).row_needs == RowContent("all", top_k=8)
