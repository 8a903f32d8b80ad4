"""The interface of weightings, which turn the teachers' scores into their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from xtoken_pl.batch import DistillBatch, SpanBatch
from xtoken_pl.losses import RowContent, SpanScores
from xtoken_pl.scoring.tasks import RowConfidence, RowScores
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.tensors import filled

# B sequences, D domains, N student rows, S spans of a teacher, V_s student's vocabulary size

#: Function that sums a tensor over all processes.
SumOverProcesses = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TeacherScores:
    """Input of a weighting for one teacher.

    Attributes:
        domain_alpha: ``[D]`` static weight of the teacher in each domain: that of its specification, or of a source.
        takes_part: ``[D]`` bool, whether the teacher teaches on a domain.
        scores: Scores of the batch's spans.
        spans: Spans that relate the rows of both sides.
        confidence: ``[S]`` :meth:`Weighting.row_confidence` summed over the rows of each span, or None.
        num_bytes: ``[S]`` bytes of each span; a span without bytes (eos) counts as one.
        sequence: ``[N]`` index of the sequence that each student row is in.
        domain: ``[B]`` domain of each sequence.
        row_domain: ``[N]`` domain of each student row.
    """

    domain_alpha: Tensor
    takes_part: Tensor
    scores: SpanScores
    spans: SpanBatch
    confidence: Tensor | None
    num_bytes: Tensor
    sequence: Tensor
    domain: Tensor
    row_domain: Tensor

    @property
    def num_sequences(self) -> int:
        """Number of sequences in the batch, B."""
        return len(self.domain)

    @cached_property
    def alpha(self) -> Tensor:
        """Static weight: a scalar, or ``[N]``, one per student row, if there are several domains."""
        return self.domain_alpha[0] if len(self.domain_alpha) == 1 else self.domain_alpha[self.row_domain]

    @cached_property
    def row_takes_part(self) -> Tensor:
        """``[N]`` bool, whether the teacher teaches on the domain of a student row."""
        return self.takes_part[self.row_domain]


def teacher_scores(
    scores: RowScores, batch: DistillBatch, alphas: Mapping[str, Sequence[float | None]], num_bytes_of_token: Tensor
) -> dict[str, TeacherScores]:
    """Collects the input of a weighting for every teacher of a batch.

    Args:
        scores: Scores of the batch's rows.
        batch: The batch.
        alphas: Static weight in each domain, by teacher name; None where a teacher does not teach.
        num_bytes_of_token: ``[V_s]`` number of bytes of each token of the student's vocabulary.
    """
    sequence, domain, row_domain = batch.row_sequence, batch.sequence_domain, batch.row_domain  # [N], [B], [N]
    num_bytes = num_bytes_of_token[batch.student.labels]  # [N]
    views: dict[str, TeacherScores] = {}
    for name, span_scores in scores.spans.items():
        spans = batch.teachers[name].spans
        views[name] = TeacherScores(
            domain_alpha=filled([alpha or 0.0 for alpha in alphas[name]], span_scores.loss),
            takes_part=filled([alpha is not None for alpha in alphas[name]], sequence).bool(),
            scores=span_scores,
            spans=spans,
            confidence=scores.confidence.get(name),
            num_bytes=spans.sum_student_rows(num_bytes).clamp_min(1),
            sequence=sequence,
            domain=domain,
            row_domain=row_domain,
        )
    return views


class Weighting(nn.Module, ABC):
    r"""Base of weightings, which compute the weights :math:`\alpha_m` in :math:`L_{KD} = \sum_m \alpha_m L_m`."""

    #: Function of a teacher's rows whose values are summed into :attr:`TeacherScores.confidence`; None for none.
    row_confidence: RowConfidence | None = None

    @property
    def row_needs(self) -> RowContent:
        """What :attr:`row_confidence` reads of a teacher's rows; a source that does not give it is refused.

        Where only the rows of span starts are known, the log-probability of a span's text stands for its confidence.
        By default a weighting with a confidence reads every row; one whose confidence is that log-probability overrides
        this.
        """
        return RowContent("span_starts" if self.row_confidence is None else "all")

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
