"""What is to be scored, and the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from xtoken_pl.batch import Block, LossPlan, SpanBatch
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
    plan: LossPlan | None = None


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
    def room_for(cls, part: RowScores, num_rows: int, num_spans: Mapping[str, int]) -> RowScores:
        """Room for a batch of scores like those of ``part``, to be filled by :meth:`write`."""

        def room(scores: SpanScores, num: int) -> SpanScores:
            agreement = None if scores.agreement is None else scores.agreement.new_empty(num)
            return SpanScores(scores.loss.new_empty(num), scores.unmapped_mass.new_empty(num), agreement)

        return cls(
            part.token_nats.new_empty(num_rows),
            {name: room(scores, num_spans[name]) for name, scores in part.spans.items()},
            {name: values.new_empty(num_spans[name]) for name, values in part.confidence.items()},
        )

    def write(self, piece: Block, part: RowScores) -> None:
        """Fills in the scores of a piece.

        Raises:
            ValueError: If a loss did not give one number for each of its spans.
        """
        self.token_nats[piece.student_rows] = part.token_nats
        for name, spans in piece.spans.items():
            for field, whole, values in zip(SpanScores._fields, self.spans[name], part.spans[name], strict=True):
                places = None if whole is None else whole[spans]
                if places is not None and values is not None and places.shape == values.shape:
                    places.copy_(values)
                elif not (places is None and values is None):
                    raise ValueError(
                        f"a loss must score every span with one number, always or never: {name!r} has "
                        f"{field} {_shape(values)} for {spans.stop - spans.start} spans"
                    )
            if name in self.confidence:
                self.confidence[name][spans] = part.confidence[name]


def _shape(values: Tensor | None) -> str:
    return "None" if values is None else f"of shape {list(values.shape)}"
