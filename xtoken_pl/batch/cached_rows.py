"""Cached teacher rows of a batch, and the log-probabilities that a loss reads from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch.movable import Movable
from xtoken_pl.batch.quantization import bits_of, floats_of, unpack_ids

# S spans of a batch, P spans of a piece, k tokens stored for each, V_t teacher's vocabulary size

#: Stored arrays of consecutive spans, by name; see :mod:`xtoken_pl.teachers.cache.shards`.
SpanArrays = dict[str, NDArray]


@dataclass
class CachedRows(Movable):
    """Cached teacher rows of a batch's spans.

    Floating-point numbers are held as the bits of integers, because Lightning's half precisions round every
    floating-point tensor of a batch.

    Attributes:
        log_probs: ``[S, k]`` int16 or int32 bits: log-probabilities of the teacher's k most probable tokens at the
            start of each span, or of all tokens if no ids are stored.
        ids: ``[S, k]`` int32 token ids, or None.
        log_tail: ``[S]`` int32 bits: logarithm of the mass of all other tokens; None if all are stored.
        log_continuation: ``[S]`` int32 bits: log c of the span's tokens after the first, at the teacher's temperature.
        log_span: ``[S]`` int32 bits: log-probability of all tokens of the span, at temperature 1.
    """

    log_probs: Tensor
    ids: Tensor | None
    log_tail: Tensor | None
    log_continuation: Tensor
    log_span: Tensor

    @classmethod
    def from_windows(cls, windows: Sequence[SpanArrays]) -> CachedRows:
        """Concatenates the spans of several windows."""
        joined = {name: np.concatenate([window[name] for window in windows]) for name in windows[0]}
        ids = torch.from_numpy(unpack_ids(joined["ids_low"], joined["ids_high"])) if "ids_low" in joined else None
        log_tail = bits_of(joined["log_tail"]) if "log_tail" in joined else None
        log_continuation, log_span = bits_of(joined["log_continuation"]), bits_of(joined["log_span"])
        return cls(bits_of(joined["log_probs"]), ids, log_tail, log_continuation, log_span)

    def __len__(self) -> int:
        return len(self.log_span)

    def continuation(self, spans: slice) -> Tensor:
        """``[P]`` log c of the given spans, nats."""
        return floats_of(self.log_continuation[spans])

    def span_log_prob(self, spans: slice) -> Tensor:
        """``[P]`` log-probability of all tokens of the given spans, at temperature 1."""
        return floats_of(self.log_span[spans])

    def dense(self, spans: slice, holes: Tensor, num_tokens: int) -> Tensor:
        """``[P, V_t]`` log-probabilities of the given spans, the tail spread evenly over the tokens not stored.

        Args:
            spans: Range of spans.
            holes: ``[V_t]`` bool, True for ids that no token has, which get -inf.
            num_tokens: Number of ids that are not holes.
        """
        log_probs = floats_of(self.log_probs[spans])
        is_exact = self.log_probs.dtype == torch.int32
        if self.ids is None or self.log_tail is None:
            log_probs = log_probs.masked_fill(holes, -torch.inf)
            return log_probs if is_exact else log_probs.log_softmax(-1)
        log_tail = floats_of(self.log_tail[spans])[:, None]
        if not is_exact:
            total = torch.cat((log_probs, log_tail), dim=1).logsumexp(-1, keepdim=True)
            log_probs, log_tail = log_probs - total, log_tail - total
        of_each = log_tail - math.log(num_tokens - log_probs.shape[1])  # [P, 1]
        dense = of_each.new_zeros(1, len(holes)).masked_fill(holes, -torch.inf) + of_each
        return dense.scatter_(1, self.ids[spans].long(), log_probs)
