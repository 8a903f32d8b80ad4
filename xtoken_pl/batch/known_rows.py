"""Teacher rows that no model of this process computes, and the log-probabilities that a loss reads from them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch.movable import Movable
from xtoken_pl.batch.quantization import bits_of, floats_of, unpack_ids

# N rows, S spans, Q teacher rows, k tokens stored of each row, V_t teacher's vocabulary size

#: Stored arrays of consecutive rows, by name; see :mod:`xtoken_pl.teachers.cache.shards`.
RowArrays = dict[str, NDArray]


@dataclass
class TopTokens(Movable):
    """The most probable tokens of some rows.

    Floating-point numbers are held as the bits of integers, because Lightning's half precisions round every
    floating-point tensor of a batch.

    Attributes:
        log_probs: ``[N, k]`` int16 (fixed point) or int32 (float32) bits: log-probabilities of the k most probable
            tokens, or of all tokens if no ids are stored.
        ids: ``[N, k]`` int32 token ids, V_t for a place without a token; None if all tokens are stored.
        log_tail: ``[N]`` int32 bits: logarithm of the mass of all other tokens; None if all are stored.
    """

    log_probs: Tensor
    ids: Tensor | None
    log_tail: Tensor | None

    @classmethod
    def from_arrays(cls, arrays: RowArrays) -> TopTokens:
        """Views stored arrays as tensors."""
        ids = torch.from_numpy(unpack_ids(arrays["ids_low"], arrays["ids_high"])) if "ids_low" in arrays else None
        log_tail = bits_of(arrays["log_tail"]) if "log_tail" in arrays else None
        return cls(bits_of(arrays["log_probs"]), ids, log_tail)

    @property
    def is_exact(self) -> bool:
        """Whether log-probabilities are stored as float32."""
        return self.log_probs.dtype == torch.int32

    def select(self, rows: slice | Tensor) -> TopTokens:
        """Returns some rows."""
        ids, log_tail = (None if values is None else values[rows] for values in (self.ids, self.log_tail))
        return TopTokens(self.log_probs[rows], ids, log_tail)


@dataclass
class KnownRows(Movable, ABC):
    """Rows of a teacher that come with the batch: from a cache, or from a server.

    Attributes:
        top: Most probable tokens of each row.
    """

    top: TopTokens

    def __len__(self) -> int:
        return len(self.top.log_probs)

    @staticmethod
    def from_windows(windows: Sequence[RowArrays]) -> KnownRows:
        """Concatenates the stored rows of several windows; the names of the arrays tell which rows they are."""
        joined = {name: np.concatenate([window[name] for window in windows]) for name in windows[0]}
        top = TopTokens.from_arrays(joined)
        if "log_observed" in joined:
            log_text = bits_of(joined["log_text"]) if "log_text" in joined else None
            return AllRows(top, bits_of(joined["log_observed"]), log_text)
        return SpanStartRows(top, bits_of(joined["log_continuation"]), bits_of(joined["log_span"]))

    @abstractmethod
    def select(self, rows: slice | Tensor) -> Self:
        """Returns some rows."""

    @abstractmethod
    def dense(self, labels: Tensor, holes: Tensor, num_tokens: int) -> Tensor:
        """``[N, V_t]`` log-probabilities, the tail spread evenly over the tokens that have none of their own.

        Args:
            labels: ``[N]`` tokens that the rows predict.
            holes: ``[V_t]`` bool, True for ids that no token has, which get -inf.
            num_tokens: Number of ids that are not holes.
        """


@dataclass
class SpanStartRows(KnownRows):
    """One row for the start of each span, and the probability of the span's other tokens.

    Attributes:
        top: ``[S, ...]`` most probable tokens.
        log_continuation: ``[S]`` int32 bits: log c of the span's tokens after the first, at the teacher's temperature.
        log_span: ``[S]`` int32 bits: log-probability of all tokens of the span, at temperature 1.
    """

    log_continuation: Tensor
    log_span: Tensor

    @property
    def continuation(self) -> Tensor:
        """``[S]`` log c, nats."""
        return floats_of(self.log_continuation)

    @property
    def span_log_prob(self) -> Tensor:
        """``[S]`` log-probability of all tokens of each span, at temperature 1."""
        return floats_of(self.log_span)

    def select(self, rows: slice | Tensor) -> SpanStartRows:
        return SpanStartRows(self.top.select(rows), self.log_continuation[rows], self.log_span[rows])

    def dense(self, labels: Tensor, holes: Tensor, num_tokens: int) -> Tensor:
        log_probs = floats_of(self.top.log_probs)
        if self.top.ids is None or self.top.log_tail is None:
            log_probs = log_probs.masked_fill(holes, -torch.inf)
            return log_probs if self.top.is_exact else log_probs.log_softmax(-1)
        log_tail = floats_of(self.top.log_tail)[:, None]
        if not self.top.is_exact:
            total = torch.cat((log_probs, log_tail), dim=1).logsumexp(-1, keepdim=True)
            log_probs, log_tail = log_probs - total, log_tail - total
        of_each = log_tail - math.log(num_tokens - log_probs.shape[1])  # [P, 1]
        dense = of_each.new_zeros(1, len(holes)).masked_fill(holes, -torch.inf) + of_each
        return dense.scatter_(1, self.top.ids.long(), log_probs)


@dataclass
class AllRows(KnownRows):
    """Every teacher row of every span.

    Attributes:
        top: ``[Q, ...]`` most probable tokens; their tail leaves the observed token out.
        log_observed: ``[Q]`` int32 bits: log-probability of the observed token, at the teacher's temperature.
        log_text: ``[Q]`` int32 bits: the same at temperature 1; None if that is the teacher's temperature.
    """

    log_observed: Tensor
    log_text: Tensor | None = None

    @property
    def text(self) -> Tensor:
        """``[Q]`` log-probability of the observed tokens, at temperature 1."""
        return floats_of(self.log_observed if self.log_text is None else self.log_text)

    def select(self, rows: slice | Tensor) -> AllRows:
        log_text = None if self.log_text is None else self.log_text[rows]
        return AllRows(self.top.select(rows), self.log_observed[rows], log_text)

    def dense(self, labels: Tensor, holes: Tensor, num_tokens: int) -> Tensor:
        """As above; the observed token has its exact probability.

        Rows of 16 bits sum to 1 up to their error of 2.4e-4, because normalizing them would move the observed token.
        """
        log_probs, observed = floats_of(self.top.log_probs), labels[:, None]
        if self.top.ids is None or self.top.log_tail is None:
            dense = log_probs.masked_fill(holes, -torch.inf)
        else:
            ids = self.top.ids.long()
            num_others = num_tokens - (ids < len(holes)).sum(-1) - (ids != observed).all(-1).long()
            of_each = (floats_of(self.top.log_tail) - num_others.clamp_min(1).log())[:, None]  # [Q, 1]
            dense = of_each.new_zeros(1, len(holes)).masked_fill(holes, -torch.inf) + of_each
            # A place without a token writes to the observed one, which is overwritten below.
            dense.scatter_(1, torch.where(ids < len(holes), ids, observed), log_probs)
        return dense.scatter_(1, observed, floats_of(self.log_observed)[:, None])
