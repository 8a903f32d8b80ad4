"""What is to be scored, and the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xtoken_pl.batch import SpanBatch
from xtoken_pl.losses.base import SpanLoss, SpanScores
from xtoken_pl.models.head import Head

# N/Q student/teacher rows, S spans, H hidden size, V_t teacher's vocabulary size

#: How sure a teacher is: log-probabilities [Q, V_t] and the tokens [Q] that they predict in, a number per row [Q] out.
RowConfidence = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class HiddenRows:
    """One side's rows before the head: hidden states ``[N, H]``, the tokens ``[N]`` that they predict, the head."""

    hidden: Tensor
    labels: Tensor
    head: Head


@dataclass(frozen=True)
class TeacherTask:
    """What is computed for one teacher: its loss and, where a weighting asks for it, its confidence."""

    rows: HiddenRows
    spans: SpanBatch
    loss: SpanLoss
    temperature: float = 1.0
    confidence: RowConfidence | None = None


@dataclass(frozen=True)
class RowScores:
    """What is known of a batch, or of a piece of it.

    Attributes:
        token_nats: ``[N]`` cross-entropy of every student row.
        spans: By teacher, the scores of every span.
        confidence: By teacher, ``[S]``: the confidence of the rows of every span, summed; only where it was asked for.
    """

    token_nats: Tensor
    spans: dict[str, SpanScores]
    confidence: dict[str, Tensor]

    @classmethod
    def concatenate(cls, parts: Sequence[RowScores]) -> RowScores:
        """Those of consecutive pieces as one."""
        first = parts[0]
        return cls(
            token_nats=torch.cat([part.token_nats for part in parts]),
            spans={name: SpanScores.concatenate([part.spans[name] for part in parts]) for name in first.spans},
            confidence={name: torch.cat([part.confidence[name] for part in parts]) for name in first.confidence},
        )
