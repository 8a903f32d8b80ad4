"""The interface between the teachers' scores and their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from xtoken_pl.batch import DistillBatch, SpanBatch
from xtoken_pl.losses import SpanScores
from xtoken_pl.scoring.tasks import RowConfidence, RowScores
from xtoken_pl.utilities.errors import UserError

# N student rows, S spans of a teacher, V_s student's vocabulary size

#: Sums a tensor over processes.
SumOverProcesses = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TeacherScores:
    """What a weighting sees of a teacher.

    Attributes:
        alpha: The teacher's own, from its specification.
        scores: Of the batch's spans.
        spans: How they relate the rows of both sides.
        confidence: ``[S]`` the weighting's :attr:`Weighting.row_confidence` summed over the rows of each span, or None.
        num_bytes: ``[S]`` bytes of each span; a span without any (eos) counts as one.
        sequence: ``[N]`` the sequence of the batch that each student row is in.
        num_sequences: Of the batch.
    """

    alpha: float
    scores: SpanScores
    spans: SpanBatch
    confidence: Tensor | None
    num_bytes: Tensor
    sequence: Tensor
    num_sequences: int


def teacher_scores(
    scores: RowScores, batch: DistillBatch, alphas: Mapping[str, float], num_bytes_of_token: Tensor
) -> dict[str, TeacherScores]:
    """What a weighting sees of every teacher of a batch.

    Args:
        num_bytes_of_token: ``[V_s]`` of the student's vocabulary.
    """
    num_sequences, width = batch.student.input_ids.shape
    sequence = batch.student.rows // width  # [N]
    num_bytes = num_bytes_of_token[batch.student.labels]  # [N]
    views: dict[str, TeacherScores] = {}
    for name, span_scores in scores.spans.items():
        spans = batch.teachers[name].spans
        views[name] = TeacherScores(
            alpha=alphas[name],
            scores=span_scores,
            spans=spans,
            confidence=scores.confidence.get(name),
            num_bytes=spans.sum_student_rows(num_bytes).clamp_min(1),
            sequence=sequence,
            num_sequences=num_sequences,
        )
    return views


class Weighting(nn.Module, ABC):
    r"""Gives every teacher its weight :math:`\alpha_m` in :math:`L_{KD} = \sum_m \alpha_m L_m`."""

    #: What is computed of each row of a teacher for :attr:`TeacherScores.confidence`; None for nothing.
    row_confidence: RowConfidence | None = None

    def why_not_cacheable(self) -> str | None:
        """What the weighting needs of a teacher beyond a cache, which knows the log-probability of each span's text.

        None if it needs no more. By default that is a weighting without :attr:`row_confidence`; one whose confidence
        is that log-probability overrides this.
        """
        return None if self.row_confidence is None else f"{type(self).__name__} measures a confidence of its own"

    def check(self, alphas: Mapping[str, float]) -> None:
        """Refuses static weights that this weighting cannot work with. Called once, before training."""

    @abstractmethod
    def forward(self, teachers: Mapping[str, TeacherScores], sum_over_processes: SumOverProcesses) -> dict[str, Tensor]:
        """The weights of each teacher, detached: a scalar, or ``[N]``, one for each student row."""


def span_alphas(alpha: Mapping[str, Tensor], batch: DistillBatch) -> dict[str, Tensor]:
    """The weights of each teacher's spans: a scalar, or ``[S]``, the average over the student rows of each span."""
    weights: dict[str, Tensor] = {}
    for name, weight in alpha.items():
        spans = batch.teachers[name].spans
        weights[name] = weight if weight.ndim == 0 else spans.sum_student_rows(weight) / spans.student_length
    return weights


def check_any_alpha(alphas: Mapping[str, float]) -> None:
    """Refuses alphas that are all zero.

    Raises:
        UserError: If no teacher has a positive alpha.
    """
    if alphas and not any(alphas.values()):
        raise UserError(
            f"at least one teacher's alpha must be > 0, got {dict(alphas)}; "
            "raise one, or train on cross-entropy alone with kd_weight=0"
        )
