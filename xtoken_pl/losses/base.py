"""The interface of every loss: a block of rows and how they relate, in; a number per span, out.

A loss knows nothing of batches, models, padding or temperature. Most losses reduce to a pure function of matched
rows (:class:`xtoken_pl.MatchedRowLoss`); one that needs several teacher rows for a student row reads the block itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from xtoken_pl.batch import LossPlan, Planner, sum_by_span
from xtoken_pl.losses.counterparts import LossCounterparts
from xtoken_pl.losses.row_content import RowContent
from xtoken_pl.prefix_map import BranchReader
from xtoken_pl.projection import LearnedProjection, Projection
from xtoken_pl.tokenization import CanonicalVocabulary

# P student rows, Q teacher rows, S spans, V_s/V_t vocabulary sizes (student/teacher), H hidden size of a side

_INDEX, _FLOAT = torch.int64.itemsize, torch.float32.itemsize
#: Teacher tokens of a row of W at most.
_PLACES = 4


def observed_log_probs(log_probs: Tensor, labels: Tensor) -> Tensor:
    """``[N, V], [N] -> [N]``: the log-probability of each observed token."""
    return log_probs.gather(1, labels[:, None]).squeeze(1)


@dataclass(frozen=True)
class SideRows:
    """One side's rows of a block. Row ``i`` is the distribution that predicts token ``labels[i]``.

    Attributes:
        log_probs: ``[N, V]`` log-probabilities, -inf for ids that do not exist.
        labels: ``[N]`` the observed tokens.
        first: ``[S]`` each span's first row.
        length: ``[S]`` the number of tokens of each span; their rows follow one another, or only the first is here.
        span: ``[N]`` the span of each row, S for a row of no span.
        known_log_continuation: ``[S]`` log c, where only the first rows are here.
        known_log_likelihood: ``[S]`` log-probability of all of a span's tokens, where it is known better than by the
            first rows that are here and c.
        hidden: ``[N, H]`` hidden states that the model's head reads, in float32 at least; the student's have a
            gradient. None unless the loss sets :attr:`SpanLoss.needs_hidden_states`.
        top_ids: ``[N, k]`` the tokens with a probability of their own besides the observed one, V for a place without a
            token; the others have even shares of the tail. None where all tokens have their own.
    """

    log_probs: Tensor
    labels: Tensor
    first: Tensor
    length: Tensor
    span: Tensor
    known_log_continuation: Tensor | None = None
    known_log_likelihood: Tensor | None = None
    hidden: Tensor | None = None
    top_ids: Tensor | None = None

    @property
    def only_first_rows(self) -> bool:
        """Whether every row is a span of its own; then there is nothing to select and nothing to add."""
        return len(self.first) == len(self.labels)

    def first_rows(self) -> Tensor:
        """``[S, V]``: the distribution at the start of each span."""
        return self.log_probs if self.only_first_rows else self.log_probs.index_select(0, self.first)

    def first_hidden(self) -> Tensor:
        """``[S, H]``: the hidden states at the start of each span."""
        assert self.hidden is not None, "only a loss with needs_hidden_states = True gets hidden states"
        return self.hidden if self.only_first_rows else self.hidden.index_select(0, self.first)

    def log_continuation(self) -> Tensor:
        r"""``[S]``: :math:`\log c = \sum_{k>i} \log p(x_k | x_{<k})` over a span's tokens after the first."""
        if self.known_log_continuation is not None:
            return self.known_log_continuation
        if self.only_first_rows:
            return self.log_probs.new_zeros(len(self.first))
        token_log_probs = self.token_log_probs()
        is_first = torch.zeros_like(self.labels, dtype=torch.bool).index_fill(0, self.first, value=True)
        return self.sum_by_span(token_log_probs.masked_fill(is_first, 0.0))

    def log_likelihood(self) -> Tensor:
        """``[S]``: the log-probability of all of a span's tokens."""
        if self.known_log_likelihood is not None:
            return self.known_log_likelihood
        if self.known_log_continuation is not None:
            return self.token_log_probs() + self.known_log_continuation
        return self.sum_by_span(self.token_log_probs())

    def token_log_probs(self) -> Tensor:
        """``[N]``: the log-probability of each observed token."""
        return observed_log_probs(self.log_probs, self.labels)

    def mean_rows(self, rows: Tensor) -> Tensor:
        """``[N, V] -> [S, V]``: the average over each span's rows."""
        return self.sum_by_span(rows) / self.length[:, None]

    def sum_by_span(self, values: Tensor) -> Tensor:
        """``[N, ...] -> [S, ...]``: the sum over each span's rows."""
        return sum_by_span(values, self.span, self.first.shape[0])


@dataclass(frozen=True)
class SpanBlock:
    """All rows of some consecutive spans, of both sides, and the teacher row before them if the plan reads it.

    Attributes:
        student, teacher: Rows of each side.
        plan: Plan of these rows, if the loss has a :attr:`SpanLoss.planner`; it refers to no others.
    """

    student: SideRows
    teacher: SideRows
    plan: LossPlan | None = None


class SpanScores(NamedTuple):
    """The scores of some spans under one loss.

    Attributes:
        loss: ``[S]`` nats.
        unmapped_mass: ``[S]`` the student's probability that the loss compares with no token of the teacher (no place
            in W, outside C), in [0, 1], detached.
        agreement: ``[S]`` 1 where both sides' most probable token is the same, detached; None during training.
    """

    loss: Tensor
    unmapped_mass: Tensor
    agreement: Tensor | None


def projection_bytes(student_size: int, teacher_size: int, *, learned: bool = False) -> int:
    """Upper bound of the bytes that a loss holds to project by W.

    The places of W's ``E <= 4 V_s`` entries for the product and its gradient,
    ``2 (40 E + 4 E) + 20 (V_s + V_t) + 8 V_t``; learned, also W, its support and its entries: ``80 V_s + 20 E``.
    """
    entries = _PLACES * student_size
    product = 2 * (5 * _INDEX + _FLOAT) * entries
    product += (2 * _INDEX + _FLOAT) * (student_size + teacher_size) + _INDEX * teacher_size
    if not learned:
        return product
    return product + (_PLACES * (_FLOAT + _INDEX) + _INDEX) * student_size + (2 * _INDEX + _FLOAT) * entries


class SpanLoss(nn.Module, ABC):
    """Base of all losses. Subclass it, or :class:`xtoken_pl.MatchedRowLoss`, anywhere importable to add one.

    A loss is configured without data (``__init__``) and then bound once to a pair of vocabularies (:meth:`bind`).
    """

    #: Whether :meth:`bind` needs W.
    needs_projection: ClassVar[bool] = False
    #: Whether a gradient reaches the weights of W, so that they can be learned.
    can_learn_projection: ClassVar[bool] = False
    #: Whether :meth:`forward` gets the hidden states of both sides; see :attr:`SideRows.hidden`.
    needs_hidden_states: ClassVar[bool] = False

    #: W as it stands, of a bound loss that projects the student's probabilities by it; None of any other.
    projection: Projection | None = None

    def bind(self, student: CanonicalVocabulary, teacher: CanonicalVocabulary, projection: Projection | None) -> None:
        """Prepares the loss for two vocabularies. Called once, before training."""

    @property
    def can_be_negative(self) -> bool:
        """Whether the loss of a span may be below zero, beyond rounding."""
        return False

    def learn_projection(self) -> None:
        """Makes the weights of W parameters; called after :meth:`bind`, where ``can_learn_projection`` is True."""
        raise NotImplementedError(f"{type(self).__name__} does not learn a projection")

    @property
    def planner(self) -> Planner | None:
        """Function that makes the plan of a batch from its tokens alone, before there are logits; None for no plan.

        It is called where batches are made, in the processes of the data loader, so that it must be picklable and
        should hold no tensor of the loss. Its plan may read teacher rows behind a span: blocks are then cut where no
        row reads behind the cut. A plan with ``reads_row_before`` may also read the row before the first of a span;
        that of a block's first span is in no span there.
        """
        return None

    def look_ahead(self, plan: LossPlan, reader: BranchReader) -> LossPlan:
        """Extends the plan of a batch by what the teacher says behind tokens that the text does not have.

        Called once the teacher has read the batch, if :attr:`row_needs` asks for ``branches``. The default returns the
        plan.
        """
        return plan

    @abstractmethod
    def forward(self, block: SpanBlock) -> SpanScores:
        """Scores every span of a block.

        The score of a span must depend on that span's rows alone, or on others that the plan keeps in the same
        block. The weight of the span is known, and applied, only later.
        """

    # Questions of commands and callbacks; the defaults suit any loss.

    @property
    def learned_projection(self) -> LearnedProjection | None:
        """The part of the loss that holds the learned weights of W; None where none are learned."""
        return next((part for part in self.modules() if isinstance(part, LearnedProjection)), None)

    def in_teacher_tokens(self, student_probs: Tensor) -> tuple[Tensor, Tensor] | None:
        """The student's probabilities over teacher tokens, for a bound loss that compares them there.

        Returns:
            ``[K, V_s] -> [K, R], [R]``: probabilities, and the teacher token of each column; None, the default, for a
            loss that compares the student's own tokens.
        """
        return None

    def counterparts(self, student_ids: Iterable[int]) -> LossCounterparts | None:
        """The teacher tokens that a bound loss compares some student tokens with; None where it pairs no tokens."""
        return None

    def state_bytes(self, student_size: int, teacher_size: int, *, learned: bool = False) -> int:
        """Upper bound of the bytes that the loss holds once it is bound; it is called before.

        The default is that of W, :func:`projection_bytes`, and for each of the loss's own parameters four times its
        size: with its gradient and two moments of AdamW.

        Args:
            student_size: V_s.
            teacher_size: V_t.
            learned: Whether the weights of W are learned; these parameters themselves are counted elsewhere.
        """
        own = 4 * sum(parameter.nbytes for parameter in self.parameters())
        return projection_bytes(student_size, teacher_size, learned=learned) + own

    @property
    def row_needs(self) -> RowContent:
        """What the loss reads of the teacher's rows; a source that does not give it is refused before training.

        The default is every row, and hidden states where :attr:`needs_hidden_states` is set.
        """
        return RowContent("all", hidden_states=self.needs_hidden_states)

    def limit_teacher_tokens(self, top_k: int) -> str | None:
        """Adapts a bound loss to a source that gives the ``top_k`` most probable tokens of each teacher row.

        All other tokens of such a row share its remaining mass evenly.

        Returns:
            Description of the change for the log; None, the default, for no change.
        """
        return None

    @torch.no_grad()
    def agreement(self, student: Tensor, teacher: Tensor, teacher_token: Tensor | None = None) -> Tensor | None:
        """``[S, V_s], [S, V_t] -> [S]``: 1 where both sides prefer the same token, else 0; None during training.

        Args:
            teacher_token: ``[V_s]`` the teacher's token of each column of ``student``, -1 for none; None where both
                sides have the same columns.
        """
        if self.training:
            return None
        preferred = student.argmax(-1)
        return ((preferred if teacher_token is None else teacher_token[preferred]) == teacher.argmax(-1)).float()
