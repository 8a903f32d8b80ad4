"""The byte-prefix KL against its slow reference, on small and on real tokenizers, in gradient, and at the edges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, cast

import pytest
import torch
from reference_byte_prefix import BytePrefixReference
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, splitting_tokenizer
from test_reference_byte_prefix import Language, Position, Toy
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl import BytePrefixKL, CanonicalVocabulary, TokenKL
from xtoken_pl.batch import DistillBatch, SpanBatch
from xtoken_pl.data import Windower, collate
from xtoken_pl.losses.base import SideRows, SpanBlock
from xtoken_pl.losses.group_kl import Groups, group_kl
from xtoken_pl.losses.planning import plan_losses
from xtoken_pl.prefix_map import PrefixPlan
from xtoken_pl.tokenization.writing import write_bytes

TEXT = TEXTS[0][:500] + " 1234 + 56 = 1290; 99 of 150 (17%) in 2024 " + TEXTS[3][:500]


@dataclass
class Pair:
    """A loss bound to two tokenizers, and one window of a text under both."""

    loss: BytePrefixKL
    student: CanonicalVocabulary
    teacher: CanonicalVocabulary
    window: dict[str, Any]
    batch: DistillBatch

    @classmethod
    def of(cls, student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast, text: str = TEXT) -> Pair:
        vocabularies = [CanonicalVocabulary.from_tokenizer(tokenizer) for tokenizer in (student, teacher)]
        loss = BytePrefixKL()
        loss.bind(*vocabularies, None)
        columns = Windower(vocabularies[0], {"t": vocabularies[1]}, 10_000)([text])
        window = {name: column[0] for name, column in columns.items()}
        batch = plan_losses(collate([window], ["t"]), {"t": loss})
        return cls(loss, *vocabularies, window, batch)

    @property
    def spans(self) -> SpanBatch:
        return self.batch.teachers["t"].spans

    def rows(self, *, seed: int = 0, scale: float = 2.0, observed: float = 8.0) -> tuple[Tensor, Tensor]:
        """Random log-probabilities of both sides, in which the observed tokens stand out."""
        torch.manual_seed(seed)
        view = self.batch.teachers["t"]
        sides = (self.batch.student.labels, self.student), (view.tokens.labels, self.teacher)
        logits = [scale * torch.randn(len(labels), len(vocabulary)).double() for labels, vocabulary in sides]
        for side, (labels, _) in zip(logits, sides, strict=True):
            side[torch.arange(len(labels)), labels] += observed * torch.rand(len(labels)).double()
        student, teacher = (side.log_softmax(-1) for side in logits)
        return student, teacher

    def block(self, student: Tensor, teacher: Tensor) -> SpanBlock:
        view = self.batch.teachers["t"]
        spans = view.spans
        return SpanBlock(
            SideRows(student, self.batch.student.labels, spans.student_first, spans.student_length, spans.student_span),
            SideRows(teacher, view.tokens.labels, spans.teacher_first, spans.teacher_length, spans.teacher_span),
            view.plan,
        )

    def groups(self, teacher: Tensor) -> tuple[Groups, Groups]:
        block = self.block(teacher[:0], teacher)
        plan: Any = block.plan
        mass = self.loss.mass
        return mass.at_boundaries(plan.boundary, block.teacher), mass.inside_tokens(plan.inside, block.teacher)

    def reference(self) -> BytePrefixReference:
        by_bytes: dict[bytes, int] = {}
        for token, text in enumerate(self.teacher.token_bytes):
            by_bytes.setdefault(text, token)

        def tau(text: bytes) -> tuple[int, ...]:
            return (by_bytes[text],) if text in by_bytes else tuple(write_bytes(self.teacher, [text])[0])

        return BytePrefixReference(self.student.token_bytes, self.teacher.token_bytes, tau, self.special())

    def special(self) -> dict[int, int]:
        """Student special id -> the teacher's of the same role, of several roles the first."""
        roles = self.teacher.roles
        return {s: roles[role] for role, s in reversed(self.student.roles.items()) if role in roles}


PAIRS = {
    "packing from splitting": (packing_tokenizer, splitting_tokenizer),
    "splitting from packing": (splitting_tokenizer, packing_tokenizer),
    "reversing from packing": (reversing_tokenizer, packing_tokenizer),
    "small from large": (lambda: splitting_tokenizer(320), lambda: reversing_tokenizer(1200)),
}
every_pair = pytest.mark.parametrize("name", PAIRS)


def make(name: str) -> Pair:
    student, teacher = PAIRS[name]
    return Pair.of(student(), teacher())


@every_pair
def test_every_position_equals_the_slow_reference(name: str) -> None:
    pair = make(name)
    student, teacher = pair.rows()
    groups = pair.groups(teacher)
    ours = group_kl(student, *groups)
    reference = pair.reference()
    skip_s, skip_t = len(pair.student.prefix_ids), len(pair.teacher.prefix_ids)
    student_ids, teacher_ids = pair.window["student_ids"][skip_s:], pair.window["t/ids"][skip_t:]
    # Row r predicts the token behind its position; tokens at the start of the text may have none.
    predicted = (pair.batch.teachers["t"].tokens.rows + 1 - skip_t).tolist()
    known = dict(zip(predicted, teacher.exp().tolist(), strict=True))
    rows = [known.get(index, []) for index in range(len(teacher_ids))]
    exists = [index in known for index in range(len(teacher_ids))]
    of_row = (pair.batch.student.rows + 1 - skip_s).tolist()
    positions = {int(row) for part in groups for row in part.row}
    assert positions == set(torch.nonzero(pair.spans.student_span < len(pair.spans)).flatten().tolist())
    for row in sorted(positions):
        probs = student[row].exp().tolist()
        expected = reference.loss(of_row[row], student_ids, teacher_ids, rows, probs, exists)
        assert ours[row].item() == pytest.approx(expected, abs=1e-10, rel=1e-10), row


@every_pair
def test_gradient_by_hand_is_that_of_autograd(name: str) -> None:
    pair = make(name)
    student, teacher = pair.rows()
    groups = pair.groups(teacher)
    weights = torch.rand(len(student), dtype=torch.float64)
    ours, plain = student.clone().requires_grad_(), student.clone().requires_grad_()
    (group_kl(ours, *groups) * weights).sum().backward()
    loss = plain_group_kl(plain, *groups)
    (loss * weights).sum().backward()
    torch.testing.assert_close(group_kl(student, *groups), loss.detach(), rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=0, atol=1e-10)


def nats_of(mass: Tensor, probs: Tensor) -> Tensor:
    return mass * (mass.clamp_min(1e-300).log() - probs.clamp_min(1e-300).log())


def plain_group_kl(log_probs: Tensor, *groups: Groups) -> Tensor:
    """The formula, as autograd sees it."""
    loss = torch.zeros(len(log_probs), dtype=log_probs.dtype)
    for part in groups:
        probs = log_probs[part.row].exp()
        mass, ours = part.column_mass, probs
        if part.column is not None:
            none = torch.zeros(len(probs), mass.shape[1] + 1, dtype=probs.dtype)
            ours = none.index_add(1, part.column, probs)[:, :-1]
        segments = torch.zeros_like(part.segment_mass).index_add(0, part.member_segment, probs.flatten()[part.member])
        total = mass.sum(-1).index_add(0, part.segment_position, part.segment_mass)
        of_segment = part.segment_mass / total[part.segment_position]
        nats = nats_of(mass / total[:, None], ours).sum(-1)
        nats = nats.index_add(0, part.segment_position, nats_of(of_segment, segments))
        loss = loss.index_add(0, part.row, nats)
    return loss


def test_gradcheck() -> None:
    pair = Pair.of(reversing_tokenizer(), packing_tokenizer(), TEXT[:150])
    student, teacher = pair.rows()
    groups = pair.groups(teacher)
    assert all(part.segment_mass.numel() for part in groups), "both kinds are divided"
    assert torch.autograd.gradcheck(lambda rows: group_kl(rows, *groups), student.requires_grad_(), fast_mode=True)


def test_the_same_tokenizer_gives_token_kl() -> None:
    pair = Pair.of(packing_tokenizer(), packing_tokenizer())
    student, teacher = pair.rows()
    results = []
    for loss in (pair.loss, TokenKL()):
        leaf = student.clone().requires_grad_()
        nats = loss(pair.block(leaf.log_softmax(-1), teacher)).loss
        nats.sum().backward()
        results.append((nats.detach(), cast(Tensor, leaf.grad)))
    assert pair.spans.student_length.max() == 1
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-10)


REAL_TEXT = "  Ça coûte 1 234,50 € (中文: 數字)!\n\n\tif x >= 12345:\n        return 'naïve unhappiness'\n"


@pytest.mark.parametrize(
    "names",
    [
        ("llama3", "qwen3"),
        ("smollm2", "qwen3"),
        ("llama3", "smollm2"),
        ("qwen3", "o200k"),
        ("smollm2", "llama2_style"),
        ("llama2_style", "smollm2"),
    ],
    ids=" from ".join,
)
def test_every_position_of_real_text_holds_all_of_the_teachers_mass(
    names: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    """In single precision; but for special tokens that the student has no counterpart of."""
    pair = Pair.of(*(request.getfixturevalue(name) for name in names), REAL_TEXT)
    tokens, plan = pair.batch.teachers["t"].tokens, cast(PrefixPlan, pair.batch.teachers["t"].plan)
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

    num_positions = 0
    for groups, positions in zip(pair.groups(rows), (plan.boundary, plan.inside), strict=True):
        total = groups.column_mass.sum(-1).index_add(0, groups.segment_position, groups.segment_mass)
        for place, (row, consumed) in enumerate(zip(positions.teacher, positions.consumed.tolist(), strict=True)):
            there = texts[tokens.labels[row]][:consumed]
            expected = rows[row].double().exp()[stands_for_text(there)].sum().item()
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


@pytest.fixture(scope="module")
def numeral_tokenizers() -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """Numerals of the digits 0 and 1: up to three digits in a token, as Llama 3 packs them, and one by one."""

    def make(most: int) -> PreTrainedTokenizerFast:
        numerals = ["".join(digits) for n in range(1, most + 1) for digits in product("01", repeat=n)]
        backend = Tokenizer(models.BPE({token: i for i, token in enumerate(numerals)}, [], ignore_merges=True))
        split = pre_tokenizers.Split(Regex(rf"\p{{N}}{{1,{most}}}"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken("<eos>", special=True)])
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")

    return make(3), make(1)


@pytest.mark.parametrize("packs", ["student", "teacher"])
def test_masses_are_the_probabilities_counted_over_all_texts(
    packs: str, numeral_tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]
) -> None:
    """Of the student's next token, under a random teacher of canonical sequences, exactly where the docstring says."""
    packing, splitting = numeral_tokenizers
    student, teacher = (packing, splitting) if packs == "student" else (splitting, packing)
    vocabularies = [CanonicalVocabulary.from_tokenizer(tokenizer) for tokenizer in (student, teacher)]
    toys = [Toy([text for text in vocabulary.token_bytes if text]) for vocabulary in vocabularies]
    language = Language(toys[0], toys[1], longest=8)
    num_refined = num_inside = 0
    for text in ("0110", "10110100", "0001", "01101011", "11100", "0010110"):
        pair = Pair.of(student, teacher, text)
        order = [language.teacher.ids[token] for token in pair.teacher.token_bytes]
        rows = torch.tensor(language.rows(text.encode()), dtype=torch.float64)[:, order]
        rows = rows[pair.batch.teachers["t"].tokens.rows + 1]  # nothing predicts the first token
        plan = cast(PrefixPlan, pair.batch.teachers["t"].plan)
        for groups, positions in zip(pair.groups(rows.log()), (plan.boundary, plan.inside), strict=True):
            for place, row in enumerate(positions.row.tolist()):
                index = int(pair.batch.student.rows[row]) + 1
                counted = Position(language, text.encode(), index).counted()
                found = listed(pair, groups, place)
                assert found
                total = sum(mass for mass, _ in found)
                for mass, members in found:
                    expected = sum(counted.get(pair.student.token_bytes[s], 0.0) for s in members)
                    assert mass / total == pytest.approx(expected, abs=1e-10)
                num_refined += bool((positions.level_position == place).any())
                num_inside += int(positions.consumed[place]) > 0
    assert num_refined > 6 if packs == "student" else num_inside > 6


def listed(pair: Pair, groups: Groups, place: int) -> list[tuple[float, list[int]]]:
    """The groups of a position: mass and student tokens."""
    size = len(pair.student)
    column = torch.arange(size) if groups.column is None else groups.column
    inside = torch.nonzero(groups.segment_position[groups.member_segment] == place).flatten()
    members = (groups.member[inside] - place * size).tolist()
    found: list[tuple[float, list[int]]] = []
    for c, mass in enumerate(groups.column_mass[place].tolist()):
        tokens = [s for s in torch.nonzero(column == c).flatten().tolist() if s not in members]
        found.append((mass, tokens))
    for g in torch.nonzero(groups.segment_position == place).flatten().tolist():
        tokens = [s for s, m in zip(members, groups.member_segment[inside].tolist(), strict=True) if m == g]
        found.append((float(groups.segment_mass[g]), tokens))
    return found


def test_a_shorter_student_gets_the_mass_of_all_tokens_that_begin_with_its_own(
    numeral_tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast],
) -> None:
    """Where student tokens are never longer it is byte-prefix marginalization."""
    packing, splitting = numeral_tokenizers
    pair = Pair.of(splitting, packing, "01101")
    _, teacher = pair.rows()
    boundary, _ = pair.groups(teacher)
    assert boundary.segment_mass.numel() == 0
    plan = cast(PrefixPlan, pair.batch.teachers["t"].plan)
    for place, row in enumerate(plan.boundary.teacher.tolist()):
        for s, text in enumerate(pair.student.token_bytes):
            if not text:
                continue
            begins = [v for v, other in enumerate(pair.teacher.token_bytes) if other.startswith(text)]
            mass = boundary.column_mass[place, pair.loss.mass.student_column[s]].item()
            expected = teacher[row].exp()[begins].sum().item()
            assert mass == pytest.approx(expected, abs=1e-12)
