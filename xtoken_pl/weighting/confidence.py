"""Weights that follow each teacher's confidence on the current text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from xtoken_pl.losses.base import observed_log_probs
from xtoken_pl.losses.row_content import RowContent
from xtoken_pl.utilities.checks import check_choice, check_not_negative
from xtoken_pl.weighting.base import SumOverProcesses, TeacherScores, Weighting, check_any_alpha

# M teachers, Q rows of a teacher, S spans of a teacher, N student rows, B sequences, D domains, R places with weights
# of their own (domains, sequences or student rows)

Measure = Literal["cross_entropy", "entropy", "max_probability"]
Scope = Literal["batch", "sequence", "span"]
Unit = Literal["byte", "token"]


class _ByConfidence(Weighting):
    """Base that scores every teacher at every place; :meth:`choose` turns the scores into weights."""

    def __init__(self, measure: Measure = "cross_entropy", *, scope: Scope = "batch", unit: Unit = "byte") -> None:
        super().__init__()
        self.measure: Measure = check_choice("measure", measure, Measure)
        self.scope: Scope = check_choice("scope", scope, Scope)
        self.unit: Unit = check_choice("unit", unit, Unit)
        # A probability per byte is a geometric mean: its logarithms are summed.
        self._sums_logarithms = measure == "max_probability" and unit == "byte"

    def extra_repr(self) -> str:
        return f"measure={self.measure}, scope={self.scope}, unit={self.unit}"

    @property
    def row_needs(self) -> RowContent:
        is_own = type(self).row_confidence is not _ByConfidence.row_confidence  # a subclass may measure what it likes
        return RowContent("all" if is_own or self.measure != "cross_entropy" else "span_starts")

    def check(self, alphas: Mapping[str, float]) -> None:
        check_any_alpha(alphas)
        if sum(alpha > 0 for alpha in alphas.values()) == 1:
            rank_zero_warn(
                f"{type(self).__name__} with one teacher (of alpha > 0) has nothing to compare: its alpha is 1. "
                "Add a teacher, or use StaticWeighting"
            )

    @abstractmethod
    def choose(self, scores: Tensor, alphas: Tensor) -> Tensor:
        """Turns scores into weights, ``[M, R], [M, R] -> [M, R]``; -inf: a teacher takes no part at a place."""

    def row_confidence(self, log_probs: Tensor, labels: Tensor) -> Tensor:
        if self.measure == "cross_entropy":
            return observed_log_probs(log_probs, labels)
        if self.measure == "entropy":
            # 0 log 0 = 0: ids that do not exist are -inf.
            return (log_probs.exp() * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)).sum(-1)
        highest = log_probs.amax(dim=-1)
        return highest if self._sums_logarithms else highest.exp()

    @torch.no_grad()
    def forward(self, teachers: Mapping[str, TeacherScores], sum_over_processes: SumOverProcesses) -> dict[str, Tensor]:
        if not teachers:
            return {}
        views = list(teachers.values())
        row_domain = views[0].row_domain
        alphas = torch.stack([view.domain_alpha for view in views])  # [M, D]
        if self.scope == "span":
            scores = torch.stack([self._by_student_row(view) for view in views])  # [M, N]
            alphas = alphas[:, row_domain]
        else:
            places = alphas.shape[1] if self.scope == "batch" else views[0].num_sequences
            sums = torch.stack([self._sums(view, places) for view in views])  # [M, 2, R]
            if self.scope == "batch":
                sums = sum_over_processes(sums)
            else:
                alphas = alphas[:, views[0].domain]
            scores = self._score(sums[:, 0], sums[:, 1])
        weights = self.choose(scores.masked_fill(alphas == 0, -torch.inf), alphas)  # [M, R]
        if self.scope == "sequence":
            weights = weights[:, views[0].sequence]
        elif self.scope == "batch":
            weights = weights.squeeze(1) if weights.shape[1] == 1 else weights[:, row_domain]
        return dict(zip(teachers, weights.unbind(), strict=True))

    def _units(self, view: TeacherScores) -> Tensor:
        """Bytes or teacher tokens of each span, ``[S]``."""
        return view.num_bytes if self.unit == "byte" else view.spans.teacher_length

    def _score(self, confidence: Tensor, units: Tensor) -> Tensor:
        score = confidence / units.clamp_min(1)
        score = score.exp() if self._sums_logarithms else score
        return score.masked_fill(units == 0, -torch.inf)

    def _by_student_row(self, view: TeacherScores) -> Tensor:
        """``[N]`` score of the span that each student row is in, -inf for a row in no span."""
        assert view.confidence is not None
        score = self._score(view.confidence, self._units(view))
        return torch.cat((score, score.new_full((1,), -torch.inf)))[view.spans.student_span]

    def _sums(self, view: TeacherScores, num_places: int) -> Tensor:
        """``[2, R]`` confidence in each domain or sequence, and the number of units that it is divided by."""
        assert view.confidence is not None
        place = view.row_domain if self.scope == "batch" else view.sequence  # [N]
        values = torch.stack((view.confidence, self._units(view).to(view.confidence.dtype)))  # [2, S]
        return values.new_zeros(2, num_places).index_add(1, place[view.spans.student_first], values)


class ConfidenceWeighting(_ByConfidence):
    r"""Weights by the teachers' confidence; they sum to 1 over the teachers.

    .. math:: \alpha_m = \frac{a_m e^{\kappa \, \mathrm{score}_m}}{\sum_j a_j e^{\kappa \, \mathrm{score}_j}}

    The score is computed from the teachers' forward passes of the training step:

    - ``cross_entropy``: minus the teacher's cross-entropy of the text, nats per byte (or per token);
    - ``entropy``: minus the Shannon entropy of its predictions, nats per byte (or per token);
    - ``max_probability``: the highest probability of its predictions, geometric mean per byte (or mean per token).

    Scores per byte compare teachers fairly even if their tokenizers split the text differently; per token, a teacher
    with short tokens appears more confident than it is. The static alphas :math:`a_m` are priors: equal ones give the
    published form, 0 disables a teacher. A teacher has no weight at a place that none of its spans covers.

    Args:
        measure: Measure of confidence, see above.
        scope: Extent of one weight: ``batch``, ``sequence``, or ``span``. A batch is what all processes compute at
            once, each source of a mixture by itself; an optimizer step of several batches
            (``accumulate_grad_batches``) has as many weights. For ``span``,
            weights are computed at every student token, from the span of each teacher that contains it, and averaged
            over the student tokens of a span.
        unit: ``byte``, or ``token`` as published.
        sharpness: Factor :math:`\kappa \ge 0` of the scores; 0 gives the normalized priors.

    Raises:
        UserError: If an argument is not one of its choices, or sharpness is negative.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, confidence-adaptive weights. Bytes, and alphas as priors,
            are ours.
    """

    def __init__(
        self,
        measure: Measure = "cross_entropy",
        *,
        scope: Scope = "batch",
        unit: Unit = "byte",
        sharpness: float = 1.0,
    ) -> None:
        super().__init__(measure, scope=scope, unit=unit)
        self.sharpness = check_not_negative("sharpness", sharpness, "0 leaves the alphas unchanged")

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sharpness={self.sharpness:g}"

    def choose(self, scores: Tensor, alphas: Tensor) -> Tensor:
        logits = (self.sharpness * scores + alphas.log()).masked_fill(scores.isneginf(), -torch.inf)
        return logits.softmax(dim=0).nan_to_num(0.0)  # 0 where no teacher takes part


class MostConfidentTeacher(_ByConfidence):
    """Weight 1 for the most confident teacher (the first one on a tie) and 0 for the others.

    The arguments are those of :class:`ConfidenceWeighting`. A static alpha of 0 disables a teacher; other values have
    no effect, and a warning says so if they differ.
    """

    def check(self, alphas: Mapping[str, float]) -> None:
        super().check(alphas)
        if len({alpha for alpha in alphas.values() if alpha > 0}) > 1:
            rank_zero_warn(
                f"MostConfidentTeacher gives the most confident teacher the weight 1 whatever its alpha, got "
                f"{dict(alphas)}; use ConfidenceWeighting, for which they are priors, or make them equal"
            )

    def choose(self, scores: Tensor, alphas: Tensor) -> Tensor:
        best = torch.zeros_like(scores).scatter_(0, scores.argmax(dim=0, keepdim=True), 1.0)
        return best.masked_fill(scores.isneginf(), 0.0)
