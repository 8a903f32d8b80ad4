"""The byte-prefix KL against its slow reference, on small and on real tokenizers, in gradient, and at the edges."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from reference_byte_prefix import BytePrefixReference
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, splitting_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl import BytePrefixKL, CanonicalVocabulary, TokenKL
from xtoken_pl.batch import DistillBatch, SpanBatch
from xtoken_pl.data import Windower, collate
from xtoken_pl.losses.base import SideRows, SpanBlock
from xtoken_pl.losses.group_kl import Groups, group_kl
from xtoken_pl.losses.planning import plan_losses
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
        roles = self.teacher.roles
        special = {s: roles[role] for role, s in reversed(self.student.roles.items()) if role in roles}

        def tau(text: bytes) -> tuple[int, ...]:
            return (by_bytes[text],) if text in by_bytes else tuple(write_bytes(self.teacher, [text])[0])

        return BytePrefixReference(self.student.token_bytes, self.teacher.token_bytes, tau, special)


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
def test_every_kind_of_position_occurs(name: str) -> None:
    pair = make(name)
    plan: Any = pair.batch.teachers["t"].plan
    depth = torch.bincount(plan.boundary.level_position)
    print(
        name,
        plan.boundary.before["positions"][-1],
        depth.bincount(),
        plan.inside.before["positions"][-1],
        torch.bincount(plan.inside.level_position).bincount(),
        plan.boundary.count("inherited"),
    )


@every_pair
def test_groups_hold_all_of_the_teachers_mass(name: str) -> None:
    pair = make(name)
    _, teacher = pair.rows(observed=0.0)
