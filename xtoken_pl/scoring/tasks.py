"""Rows and teachers to be scored, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xtoken_pl.batch import AllRows, Block, KnownRows, LossPlan, SpanBatch, SpanStartRows, TokenBatch
from xtoken_pl.losses.base import SideRows, SpanLoss, SpanScores, observed_log_probs
from xtoken_pl.models.head import Head
from xtoken_pl.utilities.errors import UserError

# N/Q student/teacher rows, S spans, H hidden size, V_t teacher's vocabulary size

#: Confidence of a teacher's rows: log-probabilities [Q, V_t] and observed tokens [Q] -> [Q].
RowConfidence = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class HiddenRows:
    """One side's rows before the head.

    Attributes:
        hidden: ``[N, H]`` hidden states that the head is applied to.
        labels: ``[N]`` observed tokens that the rows predict.
        head: The model's head.
        model_hidden: ``[N, H]`` the model's hidden states, if ``hidden`` replaces them; otherwise None.
    """

    hidden: Tensor
    labels: Tensor
    head: Head
    model_hidden: Tensor | None = None

    def states(self, rows: slice) -> Tensor:
        """``[P, H]`` hidden states of some rows as losses read them: detached, in float32 at least."""
        hidden = (self.hidden if self.model_hidden is None else self.model_hidden)[rows].detach()
        # Copied, since autograd keeps no tensor that was made in inference mode.
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32), copy=True)


def rows_of(tokens: TokenBatch, hidden: Tensor, head: Head) -> HiddenRows:
    """Selects the rows of hidden states ``[B, T, H]`` that predict the tokens of interest."""
    return HiddenRows(hidden.flatten(0, 1).index_select(0, tokens.rows), tokens.labels, head)


@dataclass(frozen=True)
class GivenRows:
    """A teacher's rows from a cache or a server, at the teacher's temperature: every row, or one for each span.

    Attributes:
        known: The rows.
        labels: ``[Q]`` tokens that they predict; ``[S]`` the first token of each span if there is one for each span.
        holes: ``[V_t]`` bool, True for ids that no token has.
        num_tokens: Number of ids that are not holes.
    """

    known: KnownRows
    labels: Tensor
    holes: Tensor
    num_tokens: int

    @property
    def has_all(self) -> bool:
        """Whether every row is here, rather than one for each span."""
        return isinstance(self.known, AllRows)

    def dense(self, rows: slice | Tensor) -> Tensor:
        """``[P, V_t]`` log-probabilities of some rows."""
        return self.known.select(rows).dense(self.labels[rows], self.holes, self.num_tokens)


@dataclass(frozen=True)
class TeacherTask:
    """The loss of one teacher and, if they are asked for, its confidence and the likelihood that it gives the text."""

    rows: HiddenRows | GivenRows
    spans: SpanBatch
    loss: SpanLoss
    temperature: float = 1.0
    confidence: RowConfidence | None = None
    plan: LossPlan | None = None
    measures_nats: bool = False

    @torch.no_grad()
    def side(self, piece_rows: slice, spans: slice, logits: Tensor | None) -> SideRows:
        """Makes the teacher's side of a piece.

        Args:
            piece_rows, spans: Ranges of the piece's teacher rows and spans.
            logits: ``[P, V_t]`` logits of these rows; None for given rows.
        """
        rows, hidden, top_ids = self.rows, None, None
        if isinstance(rows, HiddenRows):
            assert logits is not None
            log_probs = rows.head.normalize(logits, self.temperature)
            hidden = rows.states(piece_rows) if self.loss.needs_hidden_states else None
        elif isinstance(rows.known, SpanStartRows):
            labels = rows.labels[spans]
            each = torch.arange(len(labels), device=labels.device)
            known = rows.known.select(spans)
            likelihood = known.span_log_prob if self.temperature == 1.0 else None
            length = self.spans.teacher_length[spans]
            return SideRows(rows.dense(spans), labels, each, length, each, known.continuation, likelihood)
        else:
            log_probs, top_ids = rows.dense(piece_rows), rows.known.select(piece_rows).top.ids
        return SideRows(
            log_probs=log_probs,
            labels=rows.labels[piece_rows],
            first=self.spans.teacher_first[spans] - piece_rows.start,
            length=self.spans.teacher_length[spans],
            span=local_spans(self.spans.teacher_span[piece_rows], spans),
            hidden=hidden,
            top_ids=top_ids,
        )

    def span_confidence(self, piece_rows: slice, spans: slice, side: SideRows) -> Tensor | None:
        """Sums the confidence of a span's rows, ``[P]`` for a piece's spans; None if it is not asked for."""
        return None if self.confidence is None else self._sum_of_rows(self.confidence, piece_rows, spans, side)

    def span_nats(self, piece_rows: slice, spans: slice, side: SideRows) -> Tensor | None:
        """``[P]`` negative log-likelihood of each span's text; None if it is not asked for."""
        return -self._sum_of_rows(observed_log_probs, piece_rows, spans, side) if self.measures_nats else None

    def _sum_of_rows(self, measure: RowConfidence, piece_rows: slice, spans: slice, side: SideRows) -> Tensor:
        known = self.rows.known if isinstance(self.rows, GivenRows) else None
        if isinstance(known, SpanStartRows):
            # Nothing else is known; weightings that need more are refused before training.
            return known.select(spans).span_log_prob
        # The distribution at temperature 1, whatever the loss compares.
        log_probs = side.log_probs if self.temperature == 1.0 else (side.log_probs * self.temperature).log_softmax(-1)
        if isinstance(known, AllRows) and known.log_text is not None:
            # The tail at another temperature is a guess, the text is not.
            log_probs = log_probs.scatter(1, side.labels[:, None], known.select(piece_rows).text[:, None])
        return side.sum_by_span(measure(log_probs, side.labels))


def local_spans(span: Tensor, spans: slice) -> Tensor:
    """Span of each row, counted from the piece's first span; the number of spans for a row in none of them."""
    num_spans = spans.stop - spans.start
    local = (span - spans.start).clamp(max=num_spans)
    return local.masked_fill(local < 0, num_spans)


@dataclass(frozen=True)
class RowScores:
    """Scores of a batch, or of a piece of it.

    Attributes:
        token_nats: ``[N]`` cross-entropy of every student row.
        spans: Scores of every span, by teacher.
        confidence: ``[S]`` confidence summed over the rows of every span, by teacher; only if it was asked for.
        teacher_nats: ``[S]`` negative log-likelihood of every span's text, by teacher; only if it was asked for.
    """

    token_nats: Tensor
    spans: dict[str, SpanScores]
    confidence: dict[str, Tensor]
    teacher_nats: dict[str, Tensor]

    def with_silent(self, names: Iterable[str], *, has_confidence: bool = False, has_nats: bool = False) -> RowScores:
        """Returns the scores of all teachers in the given order, with no span for those that were not run.

        Args:
            names: Names of the teachers.
            has_confidence, has_nats: Whether the scores hold a confidence, and the teachers' likelihoods.
        """
        none = self.token_nats.detach().new_zeros(0)
        silent = SpanScores(none, none, none)
        return RowScores(
            self.token_nats,
            {name: self.spans.get(name, silent) for name in names},
            {name: self.confidence.get(name, none) for name in names if has_confidence},
            {name: self.teacher_nats.get(name, none) for name in names if has_nats},
        )

    def weighted(self, weights: Mapping[str, Tensor]) -> RowScores:
        """Returns the scores with losses and unmapped masses times a weight of each span.

        At weight 0 they are 0, even if they were infinite or NaN.

        Args:
            weights: ``[S]`` weights by teacher, for some of the teachers.
        """
        spans = dict(self.spans)
        for name, weight in weights.items():
            scores = spans[name]
            loss, mass = ((weight * values).where(weight > 0, 0) for values in (scores.loss, scores.unmapped_mass))
            spans[name] = scores._replace(loss=loss, unmapped_mass=mass)
        return replace(self, spans=spans)

    def vectors(self) -> list[Tensor]:
        """Lists all vectors, in a fixed order."""
        of_spans = [values for scores in self.spans.values() for values in scores if values is not None]
        return [self.token_nats, *of_spans, *self.confidence.values(), *self.teacher_nats.values()]

    def kinds(self, name: str) -> str:
        """Names the scores that there are of a teacher's spans, with their types."""
        measured = {"confidence": self.confidence.get(name), "teacher_nats": self.teacher_nats.get(name)}
        found = {**self.spans[name]._asdict(), **measured}
        return ", ".join(f"{score} {values.dtype}" for score, values in found.items() if values is not None)

    @classmethod
    def room_for(cls, part: RowScores, num_rows: int, num_spans: Mapping[str, int]) -> RowScores:
        """Allocates scores of a batch, of the same types as ``part``: zeros, to be filled by :meth:`write`."""

        def room(scores: SpanScores, num: int) -> SpanScores:
            return SpanScores._make(None if values is None else values.new_zeros(num) for values in scores)

        return cls(
            part.token_nats.new_zeros(num_rows),
            {name: room(scores, num_spans[name]) for name, scores in part.spans.items()},
            *(
                {name: values.new_zeros(num_spans[name]) for name, values in measured.items()}
                for measured in (part.confidence, part.teacher_nats)
            ),
        )

    def write(self, piece: Block, part: RowScores) -> None:
        """Writes the scores of a piece.

        Raises:
            UserError: If a loss did not return one number for each span.
        """
        self.token_nats[piece.student_rows] = part.token_nats
        for name, spans in piece.spans.items():
            for field, whole, values in zip(SpanScores._fields, self.spans[name], part.spans[name], strict=True):
                places = None if whole is None else whole[spans]
                if places is not None and values is not None and places.shape == values.shape:
                    places.copy_(values)
                elif not (places is None and values is None):
                    raise UserError(
                        f"a loss must score every span with one number, always or never: {name!r} has "
                        f"{field} {_shape(values)} for {spans.stop - spans.start} spans"
                    )
            if name in self.confidence:
                self.confidence[name][spans] = part.confidence[name]
            if name in self.teacher_nats:
                self.teacher_nats[name][spans] = part.teacher_nats[name]


def _shape(values: Tensor | None) -> str:
    return "None" if values is None else f"of shape {list(values.shape)}"
