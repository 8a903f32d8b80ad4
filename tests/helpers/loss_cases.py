"""All losses, each with every value of its options, the rows that it is tested on, and its slow reference.

A new loss that compares matched rows is one line in ``CASES``: its class, and a function that computes it slowly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal, get_args

import reference_losses as reference
import slow_losses as slow
import torch
from fake_vocabularies import STUDENT, TEACHER, V_S, V_T, dense, random_projection, slow_pairs
from prefix_pairs import TEXT, Pair
from small_models import packing_tokenizer, reversing_tokenizer, splitting_tokenizer
from span_rows import LABELS, NUM_STUDENT_ROWS, NUM_TEACHER_ROWS, SPANS, Span, Spans, block_of, random_rows
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from xtoken_pl import (
    ALM,
    BPM,
    ESCD,
    GOLD,
    ULD,
    BytePrefixKL,
    CanonicalVocabulary,
    HybridKL,
    PrefixPartitionKL,
    ProjectionKL,
    SimCT,
    SpanLoss,
    StrictTopK,
    TokenKL,
)
from xtoken_pl.batch import LossPlan, RowCuts, SpanBatch
from xtoken_pl.losses import Divergence, Merge, SpanBlock
from xtoken_pl.losses.base import SideRows
from xtoken_pl.models import Head
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.tasks import HiddenRows, RowScores, TeacherTask

# N/Q student/teacher rows, S spans, V_s/V_t vocabulary sizes (student/teacher)

MERGES: tuple[Merge, ...] = get_args(Merge)
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)
#: How many spans the rows have; ``many`` are of all kinds, with rows of no span between them.
Size = Literal["many", "one", "none"]


@dataclass(frozen=True)
class LossRows:
    """Rows of both sides, and how they relate.

    Attributes:
        student, teacher: ``[N, V_s]``, ``[Q, V_t]`` logits in float64.
        labels: ``[N]``, ``[Q]`` the tokens that they predict.
        spans: The spans over them.
        plan: What the loss found out from the tokens alone.
        pair: The text that the rows belong to, where there is one.
    """

    student: Tensor
    teacher: Tensor
    labels: tuple[Tensor, Tensor]
    spans: SpanBatch
    plan: LossPlan | None = None
    pair: Pair | None = None

    def block(self, student: Tensor | None = None, teacher: Tensor | None = None) -> SpanBlock:
        """What the loss gets, of other logits if there are any."""
        logits = (self.student if student is None else student), (self.teacher if teacher is None else teacher)
        s, t = (rows.float() if rows.dtype == torch.bfloat16 else rows for rows in logits)
        spans = self.spans
        return SpanBlock(
            SideRows(s.log_softmax(-1), self.labels[0], spans.student_first, spans.student_length, spans.student_span),
            SideRows(t.log_softmax(-1), self.labels[1], spans.teacher_first, spans.teacher_length, spans.teacher_span),
            self.plan,
        )

    def evaluate(
        self,
        loss: SpanLoss,
        student: Tensor,
        *,
        memory: float = 1e9,
        num_padded: int = 0,
        group: Any = None,
        **options: Any,
    ) -> RowScores:
        """The scores of a whole training step's path, whose hidden states are the logits; ``options`` of the task."""
        sides = [
            HiddenRows(rows, labels, _identity_head(rows, num_padded))
            for rows, labels in zip((student, self.teacher), self.labels, strict=True)
        ]
        task = TeacherTask(sides[1], self.spans, loss, plan=self.plan, **options)
        return evaluate_rows(sides[0], {"t": task}, self.cuts, LogitMemory(memory), group)

    def to(self, device: torch.device, dtype: torch.dtype) -> LossRows:
        """The same rows on a device, in a precision."""
        return replace(
            self,
            student=self.student.to(device, dtype),
            teacher=self.teacher.to(device, dtype),
            labels=(self.labels[0].to(device), self.labels[1].to(device)),
            spans=self.spans.to(device),
            plan=None if self.plan is None else self.plan.to(device),
        )

    @property
    def cuts(self) -> RowCuts:
        """Where these rows may be cut into blocks."""
        plans = {} if self.plan is None else {"t": self.plan}
        return RowCuts.from_spans(len(self.student), {"t": self.spans.to("cpu")}, plans)


def _identity_head(hidden: Tensor, num_padded: int) -> Head:
    """A head that gives its hidden states, with rows beyond the vocabulary that give large logits."""
    size = hidden.shape[1]
    layer = nn.Linear(size, size + num_padded, bias=False, dtype=hidden.dtype, device=hidden.device)
    layer.requires_grad_(False).weight.copy_(torch.cat([torch.eye(size), 9 * torch.ones(num_padded, size)]))
    return Head(layer, size, None)


@dataclass(frozen=True)
class LetterRows:
    """Random rows over two vocabularies of single letters, or over one; ``one`` is the span where there is one."""

    same_vocabulary: bool = False
    one: Span = (0, 3, 0, 2)

    def bind(self, loss: SpanLoss) -> None:
        """Binds to the vocabularies, and to W where the loss needs it."""
        teacher = STUDENT if self.same_vocabulary else TEACHER
        loss.bind(STUDENT, teacher, random_projection() if loss.needs_projection else None)

    def __call__(self, loss: SpanLoss, size: Size, seed: int) -> LossRows:
        spans: Spans = {"many": SPANS, "one": [self.one], "none": []}[size]
        sizes = {"many": (NUM_STUDENT_ROWS, NUM_TEACHER_ROWS), "one": (self.one[1], self.one[3]), "none": (3, 0)}
        num_student, num_teacher = sizes[size]
        student = random_rows(num_student, V_S, seed)
        teacher = random_rows(num_teacher, V_S if self.same_vocabulary else V_T, seed + 100)
        # A single span is a probable one, or its continuation would leave little of its loss.
        labels = LABELS if size == "many" else (student.argmax(-1), teacher.argmax(-1))
        found = block_of(student, teacher, labels, spans)
        s, t = found.student, found.teacher
        return LossRows(student, teacher, labels, SpanBatch(s.first, s.length, t.first, t.length, s.span, t.span))


@dataclass(frozen=True)
class TextRows:
    """Random rows over real text under two tokenizers, for a loss that reads the tokens' bytes."""

    student: Callable[[], PreTrainedTokenizerFast] = reversing_tokenizer
    teacher: Callable[[], PreTrainedTokenizerFast] = packing_tokenizer

    def __str__(self) -> str:
        return f"{self.student.__name__} from {self.teacher.__name__}".replace("_tokenizer", "")

    def bind(self, loss: SpanLoss) -> None:
        """Binds to the two tokenizers."""
        loss.bind(*(CanonicalVocabulary.from_tokenizer(make()) for make in (self.student, self.teacher)), None)

    def __call__(self, loss: SpanLoss, size: Size, seed: int) -> LossRows:
        text = f"{TEXT[:140]} 12 345" if size == "many" else " 12"
        pair = Pair.of(self.student(), self.teacher(), text, loss=loss)
        num_spans = len(pair.spans)
        wanted: dict[Size, Callable[[int], bool]] = {
            "many": lambda k: k % 7 != 3,
            "one": lambda k: k == num_spans - 1,
            "none": lambda k: False,
        }
        pair = pair.with_spans(wanted[size])
        student, teacher = pair.rows(seed=seed)
        labels = pair.batch.student.labels, pair.batch.teachers["t"].tokens.labels
        return LossRows(student, teacher, labels, pair.spans, pair.plan, pair)


#: The loss of every span, from log-probabilities of both sides.
Reference = Callable[[LossRows, Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True)
class LossCase:
    """A loss with its options, and what it is tested with."""

    kind: type[SpanLoss]
    reference: Reference
    options: dict[str, Any] = field(default_factory=dict)
    rows_of: Any = field(default_factory=LetterRows)

    def __str__(self) -> str:
        of_text = [str(self.rows_of)] if self.is_of_text and self.rows_of != TextRows() else []
        return "-".join([self.kind.__name__, *map(str, self.options.values()), *of_text])

    @property
    def is_of_text(self) -> bool:
        """Whether the rows are those of a text under two tokenizers."""
        return isinstance(self.rows_of, TextRows)

    @cached_property
    def loss(self) -> Any:
        """The loss, bound to the vocabularies that its rows are over."""
        loss = self.kind(**self.options)
        self.rows_of.bind(loss)
        return loss

    def rows(self, size: Size = "many", seed: int = 1) -> LossRows:
        """Random rows."""
        return self.rows_of(self.loss, size, seed)

    def slow(self, rows: LossRows, student: Tensor) -> Tensor:
        """The reference's loss of every span, of student logits."""
        return self.reference(rows, student.log_softmax(-1), rows.teacher.log_softmax(-1), self.loss)


def cases(kind: type[SpanLoss], reference: Reference, rows_of: Any = None, **options: Any) -> Iterator[LossCase]:
    """A loss with every merge and every divergence that it has, and further options."""
    known = inspect.signature(kind).parameters
    choices = {"merge": MERGES, "divergence": DIVERGENCES}
    names = [name for name in choices if name in known]
    for values in product(*(choices[name] for name in names)):
        yield LossCase(kind, reference, dict(zip(names, values, strict=True)) | options, rows_of or LetterRows())


def text_cases(kind: type[SpanLoss], reference: Reference, **options: Any) -> Iterator[LossCase]:
    """A loss with every divergence on one pair of tokenizers, and by default where either side splits what one packs.

    The spans of the first pair are of all kinds, and student tokens begin inside the teacher's and the reverse.
    """
    yield from cases(kind, reference, TextRows(), **options)
    for sides in ((packing_tokenizer, splitting_tokenizer), (splitting_tokenizer, packing_tokenizer)):
        yield LossCase(kind, reference, options, TextRows(*sides))


def slow_uld(rows: LossRows, student: Tensor, teacher: Tensor, loss: Any) -> Tensor:
    return reference.uld(student, teacher, *rows.labels, slow.spans_of(rows), loss.merge)


def slow_token_kl(rows: LossRows, student: Tensor, teacher: Tensor, loss: Any) -> Tensor:
    return reference.token_divergence(student, teacher, *rows.labels, slow.spans_of(rows), loss.merge, loss.divergence)


def slow_projection_kl(rows: LossRows, student: Tensor, teacher: Tensor, loss: Any) -> Tensor:
    sides, matrix = (student, teacher, *rows.labels, slow.spans_of(rows)), dense(random_projection())
    return reference.projection_divergence(*sides, matrix, loss.merge, loss.divergence)


def slow_partitioned(rows: LossRows, student: Tensor, teacher: Tensor, loss: Any) -> Tensor:
    """GOLD over the pairs of equal text; H-KL over those that W adds, too."""
    pairs = slow_pairs(random_projection() if isinstance(loss, HybridKL) else None)
    rest = [[i for i in range(n) if i not in {pair[side] for pair in pairs}] for side, n in ((0, V_S), (1, V_T))]
    options = loss.kl_weight, loss.uld_weight, loss.merge, loss.divergence
    return reference.hybrid(student, teacher, *rows.labels, slow.spans_of(rows), pairs, *rest, *options)


def slow_byte_prefix_kl(rows: LossRows, student: Tensor, teacher: Tensor, loss: Any) -> Tensor:
    """In Python floats: there is no gradient."""
    assert rows.pair is not None
    total = torch.zeros(len(rows.spans), dtype=torch.float64)
    weights = rows.pair.slow_weights(teacher) if loss.weigh_inside else {}
    for row, nats in rows.pair.slow_nats(student, teacher).items():
        total[rows.spans.student_span[row]] += weights.get(row, 1.0) * nats
    return total


_ONE_TO_ONE = LetterRows(one=(0, 1, 0, 1))

CASES: list[LossCase] = [
    *cases(TokenKL, slow_token_kl, LetterRows(same_vocabulary=True)),
    *cases(ProjectionKL, slow_projection_kl),
    *cases(HybridKL, slow_partitioned),
    *cases(GOLD, slow_partitioned),
    *cases(ULD, slow_uld),
    *cases(BytePrefixKL, slow_byte_prefix_kl, TextRows()),
    *cases(BytePrefixKL, slow_byte_prefix_kl, TextRows(splitting_tokenizer, packing_tokenizer), weigh_inside=True),
    LossCase(BytePrefixKL, slow_byte_prefix_kl, {"weigh_inside": True, "teacher_top_k": 8}, TextRows()),
    *text_cases(BPM, slow.slow_marginal),
    LossCase(BPM, slow.slow_marginal, {"teacher_top_k": 8}, TextRows()),
    *text_cases(ESCD, slow.slow_marginal),
    LossCase(ESCD, slow.slow_marginal, {"teacher_top_k": 8}, TextRows()),
    *text_cases(PrefixPartitionKL, slow.slow_prefix_partition, first_weight=0.5),
    LossCase(PrefixPartitionKL, slow.slow_prefix_partition, {"teacher_top_k": 8}, TextRows()),
    *text_cases(SimCT, slow.slow_simct),
    LossCase(SimCT, slow.slow_simct, {"units": "observed", "teacher_top_k": 8}, TextRows()),
    *cases(StrictTopK, slow.slow_strict_top_k, _ONE_TO_ONE),
    *cases(StrictTopK, slow.slow_strict_top_k, _ONE_TO_ONE, student_top_k=3),
    *cases(ALM, slow.slow_alm, tau=5.0),
]
#: Losses of matched rows over few teacher tokens.
TOP_K_CASES: list[LossCase] = [
    LossCase(kind, slow.slow_top_k, {"teacher_top_k": 3}, LetterRows(same_vocabulary=kind is TokenKL))
    for kind in (TokenKL, ProjectionKL, HybridKL)
]
