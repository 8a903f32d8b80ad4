"""The real pair of vocabularies, Llama 3 -> Qwen 3, with random hidden states and heads of any size."""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from pydoc_data.topics import topics
from typing import TypeVar

import torch
import torch.nn.functional as F
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
    MultiTeacherDistillModule,
    PrefixPartitionKL,
    Projection,
    ProjectionKL,
    SimCT,
    SpanLoss,
    StrictTopK,
    build_projection,
)
from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks import DynamicLossScaling
from xtoken_pl.data import Windower, collate
from xtoken_pl.models import Head
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.tasks import HiddenRows, TeacherTask

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))  # the tokenizers are those of the tests
import real_tokenizers

_Loss = TypeVar("_Loss", bound=SpanLoss)

#: Bytes: room for nothing but blocks, and room for 512 rows of the pair.
FLAT, KEPT = 0.5e9, 1.8e9

WAYS = {"kept": KEPT, "flat": FLAT}

#: Every loss between two tokenizers.
LOSSES: dict[str, type[SpanLoss]] = {
    "P-KL": ProjectionKL,
    "H-KL": HybridKL,
    "GOLD": GOLD,
    "ULD": ULD,
    "byte-prefix KL": BytePrefixKL,
    "BPM": BPM,
    "ESCD": ESCD,
    "prefix partition KL": PrefixPartitionKL,
    "SimCT": SimCT,
    "strict top-k": StrictTopK,
    "ALM": ALM,
}

#: Numerals come first: Llama 3 packs them and Qwen 3 splits them, so that short sequences have longer spans, too.
_FIRST = ("floating", "integers", "numbers")
TEXT = " ".join(topics[key] for key in (*_FIRST, *sorted(topics.keys() - set(_FIRST))))


def batch_of_text(module: MultiTeacherDistillModule, num_windows: int, length: int) -> DistillBatch:
    """The first windows of :data:`TEXT` for the models of a module."""
    columns = Windower(*module.vocabularies(), length)([TEXT])
    windows = [{key: column[index] for key, column in columns.items()} for index in range(num_windows)]
    return collate(windows, list(module.teachers), module.planners())


class Pair:
    """Both vocabularies, and W; Llama 3 and Qwen 3 unless others are given."""

    def __init__(
        self, student: PreTrainedTokenizerFast | None = None, teacher: PreTrainedTokenizerFast | None = None
    ) -> None:
        self.student_tokenizer = student or real_tokenizers.llama3()
        self.teacher_tokenizer = teacher or real_tokenizers.qwen3()
        self.student = CanonicalVocabulary.from_tokenizer(self.student_tokenizer)
        self.teacher = CanonicalVocabulary.from_tokenizer(self.teacher_tokenizer)

    @classmethod
    def of_shorter_tokens(cls) -> Pair:
        """SmolLM2 -> Qwen 3: a fifth of the student's positions lie inside a teacher token."""
        return cls(real_tokenizers.smollm2())

    @cached_property
    def projection(self) -> Projection:
        """W."""
        return build_projection(self.student_tokenizer, self.teacher_tokenizer)

    def bound(self, loss: _Loss) -> _Loss:
        """``loss``, bound to the pair."""
        loss.bind(self.student, self.teacher, self.projection if loss.needs_projection else None)
        return loss


class Case:
    """One sequence of ``num_tokens`` tokens with hidden states, heads, and what is computed of them."""

    def __init__(self, pair: Pair, num_tokens: int, hidden_size: int, num_teachers: int = 1) -> None:
        names = [f"teacher{index}" for index in range(num_teachers)]
        limit = num_tokens + 1  # the window's first token is predicted by none
        columns = Windower(pair.student, dict.fromkeys(names, pair.teacher), limit)([TEXT])
        self.batch = collate([{key: column[0] for key, column in columns.items()}], names)
        torch.manual_seed(0)
        self.head = nn.Linear(hidden_size, len(pair.student), bias=False)
        self.hidden = torch.randn(len(self.batch.student.rows), hidden_size, requires_grad=True)
        self.student_head = Head(self.head, len(pair.student), None)
        self.teachers: dict[str, HiddenRows] = {}
        for name in names:
            layer = nn.Linear(hidden_size, len(pair.teacher), bias=False).requires_grad_(False)
            tokens = self.batch.teachers[name].tokens
            hidden = torch.randn(len(tokens.rows), hidden_size)
            self.teachers[name] = HiddenRows(hidden, tokens.labels, Head(layer, len(pair.teacher), None))

    def clear(self) -> None:
        """Forgets the gradients, as an optimizer does."""
        self.hidden.grad = self.head.weight.grad = None

    def cross_entropy(self) -> None:
        """The baseline, forward and backward."""
        self.clear()
        F.cross_entropy(self.hidden @ self.head.weight.T, self.batch.student.labels).backward()

    def distil(self, loss: SpanLoss, memory: LogitMemory) -> Tensor:
        """Cross-entropy and the loss of every teacher with dynamic scaling, forward and backward."""
        self.clear()
        student = HiddenRows(self.hidden, self.batch.student.labels, self.student_head)
        batch = self.batch if loss.planner is None else self.batch.planned(dict.fromkeys(self.teachers, loss.planner))
        views = {name: batch.teachers[name] for name in self.teachers}
        tasks = {
            name: TeacherTask(rows, views[name].spans, loss, plan=views[name].plan)
            for name, rows in self.teachers.items()
        }
        scores = evaluate_rows(student, tasks, batch.cuts, memory)
        ce = scores.token_nats.mean()
        kd = torch.stack([spans.loss.mean() for spans in scores.spans.values()]).sum()
        total = ce + DynamicLossScaling.scale(ce.detach(), kd.detach()) * kd
        total.backward()
        return total.detach()
