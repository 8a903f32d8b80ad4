"""Sums and counts of a step over all processes, which are divided once, by the count over all processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from xtoken_pl.batch import DistillBatch
from xtoken_pl.scoring.tasks import RowScores

_PER_TEACHER = ("span_nats", "weighted_nats", "num_spans", "unmapped_mass", "num_covered_tokens", "row_alpha")


@dataclass(frozen=True)
class StepTotals:
    """Detached scalars, the same on every process.

    Attributes:
        token_nats: Sum of the cross-entropy of all kept tokens.
        num_tokens: Number of kept tokens.
        span_nats: Sum of the losses of all spans, by teacher.
        weighted_nats: Sum of the losses of all spans times their alphas, by teacher.
        num_spans: Number of spans, by teacher.
        unmapped_mass: Sum over spans of the student's unmapped mass, by teacher.
        num_covered_tokens: Number of student tokens in spans, by teacher.
        row_alpha: Sum of the alphas over all student rows, by teacher.
        num_weighted_rows: Number of student rows where any teacher has an alpha.
    """

    token_nats: Tensor
    num_tokens: Tensor
    span_nats: dict[str, Tensor]
    weighted_nats: dict[str, Tensor]
    num_spans: dict[str, Tensor]
    unmapped_mass: dict[str, Tensor]
    num_covered_tokens: dict[str, Tensor]
    row_alpha: dict[str, Tensor]
    num_weighted_rows: Tensor

    @classmethod
    def from_scores(
        cls,
        scores: RowScores,
        alpha: Mapping[str, Tensor],
        span_alpha: Mapping[str, Tensor],
        batch: DistillBatch,
        reduce: Callable[[Tensor], Tensor],
    ) -> StepTotals:
        """Sums the scores of a step.

        Args:
            scores: Scores of this process.
            alpha: Weight at each student row by teacher, a scalar or ``[N]``.
            span_alpha: Weight of each span by teacher, a scalar or ``[S]``.
            batch: Batch of this process.
            reduce: Sums a vector over processes.
        """
        nats = scores.token_nats.detach()
        rows = {name: weight.to(nats.dtype).expand(nats.shape) for name, weight in alpha.items()}  # [N]
        num_weighted = torch.stack([*rows.values(), torch.zeros_like(nats)]).sum(0).count_nonzero()
        values = [nats.sum(), nats.new_tensor(nats.numel()), num_weighted.to(nats.dtype)]
        for name, spans in scores.spans.items():
            loss = spans.loss.detach()
            num_tokens = batch.teachers[name].spans.student_length.to(loss.dtype)
            values += [loss.sum(), (span_alpha[name] * loss).sum(), loss.new_tensor(loss.numel())]
            values += [spans.unmapped_mass.sum(), num_tokens.sum(), rows[name].sum()]
        token_nats, num_rows, num_weighted, *rest = reduce(torch.stack(values)).unbind()
        width = len(_PER_TEACHER)
        by_teacher = [dict(zip(scores.spans, rest[place::width], strict=True)) for place in range(width)]
        sums = dict(zip(_PER_TEACHER, by_teacher, strict=True))
        return cls(token_nats, num_rows, num_weighted_rows=num_weighted, **sums)

    @property
    def ce(self) -> Tensor:
        """Mean cross-entropy per kept token, nats."""
        return self.token_nats / self.num_tokens.clamp_min(1)

    @property
    def kd(self) -> dict[str, Tensor]:
        """Mean loss per span of each teacher, nats."""
        return self._per_span(self.span_nats)

    @property
    def total_kd(self) -> Tensor:
        r"""The distillation loss :math:`\sum_m (1/|K_m|) \sum_k \alpha_m^{(k)} L_m^{(k)}`, nats."""
        return sum(self._per_span(self.weighted_nats).values(), torch.zeros_like(self.token_nats))

    @property
    def mean_alpha(self) -> dict[str, Tensor]:
        """Each teacher's weight, averaged over the student rows where any teacher has one."""
        return {name: total / self.num_weighted_rows.clamp_min(1) for name, total in self.row_alpha.items()}

    @property
    def mean_unmapped_mass(self) -> dict[str, Tensor]:
        """The student's unmapped mass, averaged over spans."""
        return self._per_span(self.unmapped_mass)

    def _per_span(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value / self.num_spans[name].clamp_min(1) for name, value in sums.items()}

    @property
    def span_coverage(self) -> dict[str, Tensor]:
        """Share of the kept tokens that lie in a span of each teacher."""
        return {name: covered / self.num_tokens.clamp_min(1) for name, covered in self.num_covered_tokens.items()}
