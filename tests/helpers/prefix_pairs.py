"""A loss, the byte-prefix KL by default, bound to two tokenizers, and one window of a text under both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from group_division import ListedGroups
from kept_rows import keep_and_spread
from reference_byte_prefix import BytePrefixReference, divergence_of
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, splitting_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from vocabulary_relations import preferred

from xtoken_pl import BytePrefixKL, CanonicalVocabulary, SpanLoss, TokenKL
from xtoken_pl.batch import DistillBatch, Planner, SpanBatch
from xtoken_pl.data import Windower, collate
from xtoken_pl.losses import Divergence
from xtoken_pl.losses.base import SideRows, SpanBlock
from xtoken_pl.losses.group_divergence import Groups
from xtoken_pl.losses.teacher_tokens import keep_tokens
from xtoken_pl.tokenization.writing import write_bytes

TEXT = TEXTS[0][:500] + " 1234 + 56 = 1290; 99 of 150 (17%) in 2024 " + TEXTS[3][:500]

#: Makers of the student's and the teacher's tokenizer.
TOKENIZER_PAIRS = {
    "packing from splitting": (packing_tokenizer, splitting_tokenizer),
    "splitting from packing": (splitting_tokenizer, packing_tokenizer),
    "reversing from packing": (reversing_tokenizer, packing_tokenizer),
}


def planners_of(loss: SpanLoss) -> dict[str, Planner]:
    """The planner of the loss of teacher ``t``, if it has one."""
    return {} if loss.planner is None else {"t": loss.planner}


@dataclass
class Pair:
    """A loss bound to two tokenizers, and one window of a text under both."""

    loss: Any
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
        loss: SpanLoss | None = None,
        divergence: Divergence = "forward",
        teacher_top_k: int | None = None,
    ) -> Pair:
        """``masked`` student tokens are not learned; ``loss`` is bound to the two already."""
        vocabularies = [CanonicalVocabulary.from_tokenizer(tokenizer) for tokenizer in (student, teacher)]
        if loss is None:
            loss = BytePrefixKL(divergence=divergence, teacher_top_k=teacher_top_k)
            loss.bind(*vocabularies, None)
        columns = Windower(vocabularies[0], {"t": vocabularies[1]}, 10_000)([text])
        window = {name: column[0] for name, column in columns.items()}
        for index in masked:
            window["loss_mask"][index] = 0
        batch = collate([window], ["t"], planners_of(loss))
        return cls(loss, *vocabularies, window, batch)

    def with_spans(self, keep: Callable[[int], bool]) -> Pair:
        """The same window with some of its spans."""
        spans = [self.window["t/spans"][4 * k : 4 * k + 4] for k in range(len(self.window["t/spans"]) // 4) if keep(k)]
        window = {**self.window, "t/spans": [bound for span in spans for bound in span]}
        return replace(self, window=window, batch=collate([window], ["t"], planners_of(self.loss)))

    @property
    def plan(self) -> Any:
        return self.batch.teachers["t"].plan

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
        mass, (rows, kept) = self.loss.mass, keep_tokens(block.teacher, self.loss.teacher_top_k)
        return mass.at_boundaries(plan.boundary, rows, kept), mass.inside_tokens(plan.inside, rows, kept)

    def slow_nats(self, student: Tensor, teacher: Tensor) -> dict[int, float]:
        """The divergence of every student row inside a span, by the slow reference."""
        return {
            row: divergence_of(groups, student[row].exp().tolist(), self.loss.divergence)
            for row, groups in self.slow_groups(teacher).items()
        }

    def slow_weights(self, teacher: Tensor) -> dict[int, float]:
        """The probability of the teacher token's bytes so far, 1 at a boundary, for every student row inside a span."""
        groups = self.slow_groups(teacher, normalized=False)
        return {row: math.fsum(mass for mass, _ in masses.values()) for row, masses in groups.items()}

    def slow_groups(
        self, teacher: Tensor, *, merges: bool = True, wanted: Sequence[int] | None = None, normalized: bool = True
    ) -> dict[int, ListedGroups]:
        """The groups of every student row inside a span, by the slow reference.

        Args:
            teacher: Log-probabilities of the teacher's rows.
            merges: Whether groups that no kept token reaches become one; a row's tail is spread in any case.
            wanted: Student rows; all of them without it.
            normalized: Whether masses inside a teacher token sum to 1.
        """
        reference = self.reference()
        skip_s, skip_t = len(self.student.prefix_ids), len(self.teacher.prefix_ids)
        student_ids, teacher_ids = self.window["student_ids"][skip_s:], self.window["t/ids"][skip_t:]
        # Row r predicts the token behind its position; masked tokens, and some at the start of the text, have none.
        predicted = (self.batch.teachers["t"].tokens.rows + 1 - skip_t).tolist()
        known, kept = dict(zip(predicted, teacher.exp().tolist(), strict=True)), None
        if self.loss.teacher_top_k is not None:
            both = {r: keep_and_spread(row, teacher_ids[r], self.loss.teacher_top_k) for r, row in known.items()}
            known = {r: row for r, (row, _) in both.items()}
            kept = [both[r][1] if r in both else set() for r in range(len(teacher_ids))] if merges else None
        rows = [known.get(index, []) for index in range(len(teacher_ids))]
        exists = [index in known for index in range(len(teacher_ids))]
        of_row = (self.batch.student.rows + 1 - skip_s).tolist()
        inside = torch.nonzero(self.spans.student_span < len(self.spans)).flatten().tolist()
        return {
            row: reference.groups(of_row[row], student_ids, teacher_ids, rows, exists, kept, normalized=normalized)
            for row in (inside if wanted is None else wanted)
        }

    def reference(self) -> BytePrefixReference:
        by_bytes = {self.teacher.token_bytes[token]: token for token in preferred(self.teacher)}

        def tau(text: bytes) -> tuple[int, ...]:
            return (by_bytes[text],) if text in by_bytes else tuple(write_bytes(self.teacher, [text])[0])

        pieces = set(self.student.is_byte_piece.nonzero()[0].tolist())
        return BytePrefixReference(self.student.token_bytes, self.teacher.token_bytes, tau, self.special(), pieces)

    def special(self) -> dict[int, int]:
        """Student special id -> the teacher's of the same role, of several roles the first."""
        roles = self.teacher.roles
        return {s: roles[role] for role, s in reversed(self.student.roles.items()) if role in roles}


def assert_is_token_kl(pair: Pair, divergence: Divergence, *, atol: float) -> None:
    """Compares the loss and gradient of a pair that shares its tokenizer with those of the KL of tokens."""
    student, teacher = pair.rows()
    results = []
    for loss in (pair.loss, TokenKL(divergence=divergence)):
        leaf = student.clone().requires_grad_()
        nats = loss(pair.block(leaf.log_softmax(-1), teacher)).loss
        nats.sum().backward()
        results.append((nats.detach(), cast(Tensor, leaf.grad)))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=atol)
