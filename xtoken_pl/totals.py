"""Sums and counts of a step over all processes; the division happens once, by the count over all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xtoken_pl.batch import DistillBatch
from xtoken_pl.losses.blockwise import RowScores

_PER_TEACHER = ("span_nats", "num_spans", "unmapped_mass", "num_covered_tokens")


@dataclass(frozen=True)
class StepTotals:
    """Detached scalars, the same on every process.

    Attributes:
        token_nats: Sum of the cross-entropy of all kept tokens.
        num_tokens: Their number.
        span_nats, num_spans, unmapped_mass, num_covered_tokens: By teacher: the sum of its losses, the number of
            spans, the sum over spans of the student's mass without a place in W, the student tokens in spans.
    """

    token_nats: Tensor
    num_tokens: Tensor
    span_nats: dict[str, Tensor]
    num_spans: dict[str, Tensor]
    unmapped_mass: dict[str, Tensor]
    num_covered_tokens: dict[str, Tensor]

    @classmethod
    def of(cls, scores: RowScores, batch: DistillBatch, reduce: Callable[[Tensor], Tensor]) -> StepTotals:
        """Sums a step.

        Args:
            reduce: Sums a vector over processes.
        """
        nats = scores.token_nats.detach()
        values = [nats.sum(), nats.new_tensor(nats.numel())]
        for name, spans in scores.spans.items():
            loss = spans.loss.detach()
            covered = batch.teachers[name].spans.student_length.sum()
            values += [loss.sum(), loss.new_tensor(loss.numel()), spans.unmapped_mass.sum(), covered.to(loss.dtype)]
        token_nats, num_tokens, *rest = reduce(torch.stack(values)).unbind()
        by_teacher = [dict(zip(scores.spans, rest[i :: len(_PER_TEACHER)], strict=True)) for i in range(4)]
        return cls(token_nats, num_tokens, **dict(zip(_PER_TEACHER, by_teacher, strict=True)))

    @property
    def ce(self) -> Tensor:
        """Mean cross-entropy per kept token, nats."""
        return self.token_nats / self.num_tokens.clamp_min(1)

    @property
    def kd(self) -> dict[str, Tensor]:
        """Mean loss per span of each teacher, nats."""
        return {name: nats / self.num_spans[name].clamp_min(1) for name, nats in self.span_nats.items()}

    @property
    def mean_unmapped_mass(self) -> dict[str, Tensor]:
        """The student's mass that W has no place for, averaged over spans."""
        return {name: mass / self.num_spans[name].clamp_min(1) for name, mass in self.unmapped_mass.items()}

    @property
    def span_coverage(self) -> dict[str, Tensor]:
        """Share of the kept tokens that lie in a span of each teacher."""
        return {name: covered / self.num_tokens.clamp_min(1) for name, covered in self.num_covered_tokens.items()}
