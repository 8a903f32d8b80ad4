"""The interface of weightings, which turn the teachers' scores into their weights."""

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

#: Function that sums a tensor over all processes.
SumOverProcesses = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TeacherScores:
    """Input of a weighting for one teacher.

    Attributes:
        alpha: Static weight from the teacher's specification.
        scores: Scores of the batch's spans.
        spans: Spans that relate the rows of both sides.
        confidence: ``[S]`` :meth:`Weighting.row_confidence` summed over the rows of each span, or None.
        num_bytes: ``[S]`` bytes of each span; a span without bytes (eos) counts as one.
        sequence: ``[N]`` index of the sequence that each student row is in.
        num_sequences: Number of sequences in the batch.
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
    """Collects the input of a weighting for every teacher of a batch.

    Args:
        scores: Scores of the batch's rows.
        batch: The batch.
        alphas: Static weights by teacher name.
        num_bytes_of_token: ``[V_s]`` number of bytes of each token of the student's vocabulary.
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
    r"""Base of weightings, which compute the weights :math:`\alpha_m` in :math:`L_{KD} = \sum_m \alpha_m L_m`."""

    #: Function of a teacher's rows whose values are summed into :attr:`TeacherScores.confidence`; None for none.
    row_confidence: RowConfidence | None = None

    def why_not_cacheable(self) -> str | None:
        """Reason why a teacher cannot be cached under this weighting; None if it can.

        A cache holds the log-probability of each span's text, and no other measure of confidence. By default, only a
        weighting without :attr:`row_confidence` can be used; one whose confidence is that log-probability overrides
        this.
        """
        return None if self.row_confidence is None else f"{type(self).__name__} measures a confidence of its own"

    def check(self, alphas: Mapping[str, float]) -> None:
        """Raises an error for static weights that this weighting cannot use; called once, before training."""

    @abstractmethod
    def forward(self, teachers: Mapping[str, TeacherScores], sum_over_processes: SumOverProcesses) -> dict[str, Tensor]:
        """Computes each teacher's weights, detached: a scalar, or ``[N]``, one weight per student row."""


def span_alphas(alpha: Mapping[str, Tensor], batch: DistillBatch) -> dict[str, Tensor]:
    """Weights of each teacher's spans: a scalar, or ``[S]``, averages over the student rows of each span."""
    weights: dict[str, Tensor] = {}
    for name, weight in alpha.items():
        spans = batch.teachers[name].spans
        weights[name] = weight if weight.ndim == 0 else spans.sum_student_rows(weight) / spans.student_length
    return weights


def check_any_alpha(alphas: Mapping[str, float]) -> None:
    """Checks that at least one teacher has a positive alpha.

    Raises:
        UserError: If all alphas are 0.
    """
    if alphas and not any(alphas.values()):
        raise UserError(
            f"at least one teacher's alpha must be > 0, got {dict(alphas)}; "
            "raise one, or train on cross-entropy alone with kd_weight=0"
        )
