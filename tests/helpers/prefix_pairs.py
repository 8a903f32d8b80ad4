"""The byte-prefix KL bound to two tokenizers, and one window of a text under both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from reference_byte_prefix import BytePrefixReference
from small_models import TEXTS
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xtoken_pl import BytePrefixKL, CanonicalVocabulary
from xtoken_pl.batch import DistillBatch, SpanBatch
from xtoken_pl.data import Windower, collate
from xtoken_pl.losses.base import SideRows, SpanBlock
from xtoken_pl.losses.group_kl import Groups
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
    def of(
        cls,
        student: PreTrainedTokenizerFast,
        teacher: PreTrainedTokenizerFast,
        text: str = TEXT,
        *,
        masked: Sequence[int] = (),
    ) -> Pair:
        """``masked`` student tokens are not learned."""
        vocabularies = [CanonicalVocabulary.from_tokenizer(tokenizer) for tokenizer in (student, teacher)]
        loss = BytePrefixKL()
        loss.bind(*vocabularies, None)
        columns = Windower(vocabularies[0], {"t": vocabularies[1]}, 10_000)([text])
        window = {name: column[0] for name, column in columns.items()}
        for index in masked:
            window["loss_mask"][index] = 0
        batch = collate([window], ["t"], {"t": loss.planner})
        return cls(loss, *vocabularies, window, batch)

    @property
    def plan(self) -> PrefixPlan:
        return cast(PrefixPlan, self.batch.teachers["t"].plan)

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
