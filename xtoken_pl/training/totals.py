"""Sums over the batches of an optimizer step and all processes, divided once by the count of the whole step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xtoken_pl.batch import DistillBatch, StepCounts
from xtoken_pl.scoring.tasks import RowScores
from xtoken_pl.weighting import TeacherScores

_PER_TEACHER = (
    *("span_nats", "weighted_nats", "span_weight", "unmapped_mass"),
    *("num_covered_tokens", "num_taught_tokens", "row_alpha", "num_weighted_rows"),
)


@dataclass(frozen=True)
class StepTotals:
    """Sums over the batches of an optimizer step so far: detached scalars, the same on every process.

    The numbers of tokens and the weights of spans are those of the whole step. At its last batch, the properties are
    therefore means of the step; before, they are the contribution of the batches so far.

    Attributes:
        token_nats: Sum of the cross-entropy of all kept tokens.
        num_tokens: Number of kept tokens of the whole step.
        span_nats: Sum of the losses of all spans times the weights of their kinds, by teacher.
        weighted_nats: The same sum with each loss times its alpha, too, by teacher.
        span_weight: Sum of the weights of all spans of the whole step, by teacher: their number, unless the teacher
            weighs kinds of spans differently.
        unmapped_mass: Sum over spans of the student's unmapped mass times the weight of the span, by teacher.
        num_covered_tokens: Number of student tokens in spans, by teacher.
        num_taught_tokens: Number of kept tokens so far in the domains that a teacher teaches on, by teacher.
        row_alpha: Sum of the alphas over all student rows, by teacher.
        num_weighted_rows: Number of these tokens where any teacher has an alpha, by teacher.
        num_scored_tokens: Number of kept tokens so far.
        domain_nats: ``[D]`` sum of the cross-entropy by domain, if sources have names; otherwise empty.
        domain_tokens: ``[D]`` number of kept tokens so far by domain, in the same way.
        router_sum: Sum over batches of the load balancing loss times the number of kept tokens.
        text: ``[1 + M, 2]`` result of :func:`xtoken_pl.training.on_policy.text_sums`; otherwise ``[0, 2]``.
    """

    token_nats: Tensor
    num_tokens: Tensor
    span_nats: dict[str, Tensor]
    weighted_nats: dict[str, Tensor]
    span_weight: dict[str, Tensor]
    unmapped_mass: dict[str, Tensor]
    num_covered_tokens: dict[str, Tensor]
    num_taught_tokens: dict[str, Tensor]
    row_alpha: dict[str, Tensor]
    num_weighted_rows: dict[str, Tensor]
    num_scored_tokens: Tensor
    domain_nats: Tensor
    domain_tokens: Tensor
    router_sum: Tensor
    text: Tensor

    @property
    def ce(self) -> Tensor:
        """Mean cross-entropy per kept token, nats."""
        return self.token_nats / self.num_tokens.clamp_min(1)

    @property
    def router_loss(self) -> Tensor:
        """Load balancing loss of the student's experts, averaged over kept tokens; 0 if there is none."""
        return self.router_sum / self.num_tokens.clamp_min(1)

    @property
    def kd(self) -> dict[str, Tensor]:
        """Mean loss per span of each teacher, with the weights of the kinds of spans, nats."""
        return self._per_span(self.span_nats)

    @property
    def total_kd(self) -> Tensor:
        r"""The distillation loss :math:`\sum_m \sum_k w_m^{(k)} \alpha_m^{(k)} L_m^{(k)} / \sum_k w_m^{(k)}`, nats."""
        return sum(self._per_span(self.weighted_nats).values(), torch.zeros_like(self.token_nats))

    @property
    def mean_alpha(self) -> dict[str, Tensor]:
        """Each teacher's weight, averaged over the rows of its domains where any teacher has one."""
        return _divided(self.row_alpha, self.num_weighted_rows)

    @property
    def mean_unmapped_mass(self) -> dict[str, Tensor]:
        """The student's unmapped mass, averaged over spans with the weights of their kinds."""
        return self._per_span(self.unmapped_mass)

    def _per_span(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        return _divided(sums, self.span_weight)

    @property
    def span_coverage(self) -> dict[str, Tensor]:
        """Share of the kept tokens of each teacher's domains that lie in one of its spans."""
        return _divided(self.num_covered_tokens, self.num_taught_tokens)

    def by_source(self, sources: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the share of each source in the tokens so far, and its mean cross-entropy (NaN without a token).

        Args:
            sources: Source of each domain; none if sources have no names.
        """
        nats: dict[str, Tensor] = {}
        tokens: dict[str, Tensor] = {}
        for place, source in enumerate(sources):
            nats[source] = nats.get(source, 0) + self.domain_nats[place]
            tokens[source] = tokens.get(source, 0) + self.domain_tokens[place]
        total = self.num_scored_tokens.clamp_min(1)
        shares = {source: count / total for source, count in tokens.items()}
        return shares, {source: nats[source] / count for source, count in tokens.items()}

    def likelihoods(self, teachers: Iterable[str]) -> dict[str, Any]:
        """Returns the negative log-likelihood per byte of the student's own text, NaN without a byte.

        Args:
            teachers: Names of the teachers whose likelihoods were added up.

        Returns:
            ``student_nats_per_byte``, and by teacher ``teacher_nats_per_byte``; nothing if none were added up.
        """
        if not len(self.text):
            return {}
        student, *of_teachers = (self.text[:, 0] / self.text[:, 1]).unbind()
        by_teacher = dict(zip(teachers, of_teachers, strict=True))
        return {"student_nats_per_byte": student, "teacher_nats_per_byte": by_teacher}


def _divided(sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value / or_one(counts[name]) for name, value in sums.items()}


def or_one(count: Tensor) -> Tensor:
    """Returns a divisor for a sum of ``count`` terms, or of terms of this total weight: 1 if there are none."""
    return count.where(count > 0, 1)


class StepSums:
    """Adds up the batches of an optimizer step."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # of this process
        self._last_step: tuple[Tensor | float, ...] = ()  # L_CE and L_KD, once there was one

    def expected_losses(self, totals: StepTotals, step: StepCounts) -> tuple[Tensor, Tensor]:
        """Estimates the mean L_CE and L_KD of the whole step, from the batches so far and the step before.

        The tokens that are not scored yet are expected to have the mean losses of the step before, or in the first
        step those of the batches so far. At the last batch of a step nothing is estimated.

        Args:
            totals: Result of :meth:`add`.
            step: Counts of the batch that was added last.
        """
        losses = totals.ce, totals.total_kd
        if step.is_last:
            self._last_step = losses
            return losses
        known = totals.num_scored_tokens / totals.num_tokens.clamp_min(1)
        if not self._last_step:
            known = known.clamp_min(torch.finfo(known.dtype).tiny)
            return losses[0] / known, losses[1] / known
        ce, kd = self._last_step
        return losses[0] + (1 - known) * ce, losses[1] + (1 - known) * kd

    def state_dict(self) -> list[float]:
        """Returns the losses of the last step, from which a resumed run goes on; empty before the first one's end."""
        return [float(loss) for loss in self._last_step]

    def load_state_dict(self, state: list[float]) -> None:
        """Takes the losses of :meth:`state_dict`."""
        self._last_step = tuple(state)

    def add(
        self,
        scores: RowScores,
        views: Mapping[str, TeacherScores],
        alpha: Mapping[str, Tensor],
        span_alpha: Mapping[str, Tensor],
        batch: DistillBatch,
        reduce: Callable[[Tensor], Tensor],
        kind_weights: Mapping[str, Tensor],
        num_domains: int = 0,
        text: Tensor | None = None,
        router_sum: Tensor | None = None,
    ) -> StepTotals:
        """Adds a batch, and returns the totals of all processes so far.

        Args:
            scores: Scores of this process, with losses times the weights of the kinds of spans.
            views: Scores by teacher as weightings see them.
            alpha: Weight at each student row by teacher, a scalar or ``[N]``.
            span_alpha: Weight of each span by teacher, a scalar or ``[S]``.
            batch: Batch of this process.
            reduce: Sums a vector over processes, which it may overwrite.
            kind_weights: ``[4]`` weights of the kinds of spans by teacher, for those whose weights are not all 1.
            num_domains: Number of domains of the training data if sources have names, D; otherwise 0.
            text: ``[1 + M, 2]`` likelihoods and bytes to be added up, too.
            router_sum: Load balancing loss times the number of kept tokens, to be added up, too.
        """
        step, nats = batch.step_counts, scores.token_nats.detach()

        def number(value: int) -> Tensor:
            return nats.new_full((), value)  # filled on the device: the host would wait for a copy

        def count(of_step: Tensor | int) -> Tensor:
            if isinstance(of_step, Tensor):
                return of_step if step.is_first else torch.zeros_like(of_step)
            return number(of_step if step.is_first else 0)

        rows = {
            name: weight.to(nats.dtype).expand(nats.shape) * views[name].row_takes_part
            for name, weight in alpha.items()
        }  # [N]
        is_weighted = torch.stack([*rows.values(), torch.zeros_like(nats)]).sum(0) != 0  # [N]
        routed = number(0) if router_sum is None else router_sum
        values = [nats.sum(), count(step.num_tokens), number(nats.numel()), routed]
        for name, spans in scores.spans.items():
            loss, is_taught = spans.loss.detach(), views[name].row_takes_part
            num_covered = batch.teachers[name].spans.student_length.sum()
            of_step = count(step.span_weight(name, kind_weights.get(name)))
            values += [loss.sum(), (span_alpha[name] * loss).sum(), of_step]
            values += [spans.unmapped_mass.sum(), num_covered, is_taught.sum()]
            values += [rows[name].sum(), (is_weighted & is_taught).sum()]
        by_domain = _by_domain(nats, batch, num_domains)
        of_text = nats.new_zeros(0) if text is None else text.to(nats.dtype).flatten()
        sums = torch.cat((torch.stack([value.to(nats.dtype) for value in values]), by_domain, of_text))
        if not step.is_first:
            assert self._sums is not None, f"batch {step.place + 1} of a step came without the first one"
            sums = self._sums + sums
        self._sums = sums
        total = reduce(self._sums.clone())
        width, end = len(_PER_TEACHER), len(values)
        token_nats, num_tokens, num_scored, routed, *rest = total[:end].unbind()
        by_teacher = [dict(zip(scores.spans, rest[place::width], strict=True)) for place in range(width)]
        behind = end + len(by_domain)
        domain_nats, domain_tokens = total[end:behind].view(2, num_domains)
        return StepTotals(
            token_nats,
            num_tokens,
            num_scored_tokens=num_scored,
            domain_nats=domain_nats,
            domain_tokens=domain_tokens,
            router_sum=routed,
            text=total[behind:].view(-1, 2),
            **dict(zip(_PER_TEACHER, by_teacher, strict=True)),
        )


def _by_domain(nats: Tensor, batch: DistillBatch, num_domains: int) -> Tensor:
    """``[2 D]`` sums and counts of ``[N]`` values by domain."""
    values = torch.stack((nats, torch.ones_like(nats)))
    return nats.new_zeros(2, num_domains).index_add(1, batch.row_domain, values).flatten()
