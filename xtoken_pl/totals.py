"""Sums and counts of a step over all processes; the division happens once, by the count over all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xtoken_pl.batch import DistillBatch
from xtoken_pl.losses.blockwise import RowScores

_PER_TEACHER = ("span_nats", "weighted_nats", "num_spans", "unmapped_mass", "num_covered_tokens", "weighted_tokens")


@dataclass(frozen=True)
class StepTotals:
    """Detached scalars, the same on every process.

    Attributes:
        token_nats: Sum of the cross-entropy of all kept tokens.
        num_tokens: Their number.
        span_nats: By teacher, the sum of its losses.
        weighted_nats: The same, each span's loss times its alpha.
        num_spans: By teacher, the number of its spans.
        unmapped_mass: By teacher, the sum over spans of the student's unmapped mass.
        num_covered_tokens: By teacher, the student tokens in spans.
        weighted_tokens: The same, each token times the alpha of its span.
    """

    token_nats: Tensor
    num_tokens: Tensor
    span_nats: dict[str, Tensor]
    weighted_nats: dict[str, Tensor]
    num_spans: dict[str, Tensor]
    unmapped_mass: dict[str, Tensor]
    num_covered_tokens: dict[str, Tensor]
    weighted_tokens: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        scores: RowScores,
        alpha: Mapping[str, Tensor],
        batch: DistillBatch,
        reduce: Callable[[Tensor], Tensor],
    ) -> StepTotals:
        """Sums a step.

        Args:
            alpha: By teacher, the weight of all its spans, or ``[S]`` of each.
            reduce: Sums a vector over processes.
        """
        nats = scores.token_nats.detach()
        values = [nats.sum(), nats.new_tensor(nats.numel())]
        for name, spans in scores.spans.items():
            loss = spans.loss.detach()
            num_tokens = batch.teachers[name].spans.student_length.to(loss.dtype)
            values += [loss.sum(), (alpha[name] * loss).sum(), loss.new_tensor(loss.numel()), spans.unmapped_mass.sum()]
            values += [num_tokens.sum(), (alpha[name] * num_tokens).sum()]
        token_nats, num_rows, *rest = reduce(torch.stack(values)).unbind()
        width = len(_PER_TEACHER)
        by_teacher = [dict(zip(scores.spans, rest[place::width], strict=True)) for place in range(width)]
        return cls(token_nats, num_rows, **dict(zip(_PER_TEACHER, by_teacher, strict=True)))

    @property
    def ce(self) -> Tensor:
        """Mean cross-entropy per kept token, nats."""
        return self.token_nats / self.num_tokens.clamp_min(1)

    @property
    def kd(self) -> dict[str, Tensor]:
        """Mean loss per span of each teacher, nats."""
        return {name: nats / self.num_spans[name].clamp_min(1) for name, nats in self.span_nats.items()}

    @property
    def total_kd(self) -> Tensor:
        r"""The distillation loss :math:`\sum_m (1/|K_m|) \sum_k \alpha_m^{(k)} L_m^{(k)}`, nats."""
        means = [nats / self.num_spans[name].clamp_min(1) for name, nats in self.weighted_nats.items()]
        return torch.stack(means).sum() if means else torch.zeros_like(self.token_nats)

    @property
    def mean_alpha(self) -> dict[str, Tensor]:
        """Each teacher's weight, averaged over the student tokens in its spans."""
        return {
            name: tokens / self.num_covered_tokens[name].clamp_min(1) for name, tokens in self.weighted_tokens.items()
        }

    @property
    def mean_unmapped_mass(self) -> dict[str, Tensor]:
        """The student's unmapped mass, averaged over spans."""
        return {name: mass / self.num_spans[name].clamp_min(1) for name, mass in self.unmapped_mass.items()}

    @property
    def span_coverage(self) -> dict[str, Tensor]:
        """Share of the kept tokens that lie in a span of each teacher."""
        return {name: covered / self.num_tokens.clamp_min(1) for name, covered in self.num_covered_tokens.items()}
