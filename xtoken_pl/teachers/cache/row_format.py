"""How a teacher's rows are stored: which of them, how many of their tokens, and in how many bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch import RowArrays, SpanBatch, sum_by_span
from xtoken_pl.batch.quantization import num_high_bits, pack_ids, quantize
from xtoken_pl.losses.row_content import RowKind
from xtoken_pl.teachers.cache.manifest import TopK
from xtoken_pl.utilities.errors import UserError

# P rows, Q all rows of a batch, S spans, V_t teacher's vocabulary size, k tokens stored per row


@dataclass(frozen=True)
class RowFormat:
    """Storage format of rows.

    Attributes:
        rows: Which rows are stored.
        top_k: Number of most probable tokens stored per row, or ``all``.
        precision: Bits per log-probability, 16 or 32.
        num_ids: V_t, including ids without a token.
        num_tokens: Number of ids with a token.
        has_text: Whether the log-probability of the text at temperature 1 is stored with all rows, because the
            teacher's temperature is another one.

    Raises:
        UserError: If ``top_k`` or ``precision`` is out of range.
    """

    rows: RowKind
    top_k: TopK
    precision: int
    num_ids: int
    num_tokens: int
    has_text: bool = False

    def __post_init__(self) -> None:
        if self.precision not in (16, 32):
            raise UserError(f"precision must be 16 or 32 bits, got {self.precision}")
        if self.top_k != "all" and not 1 <= self.top_k < self.num_tokens:
            raise UserError(
                f"top_k must be >= 1 and less than the teacher's {self.num_tokens:,} tokens, got {self.top_k}; "
                "'all' stores every token"
            )

    @property
    def bytes_per_row(self) -> int:
        """Bytes stored per row."""
        observed = 8 if self.rows == "span_starts" or self.has_text else 4
        if self.top_k == "all":
            return self.num_ids * self.precision // 8 + observed
        ids = 2 * self.top_k + num_high_bits(self.num_ids) * -(-self.top_k // 8)
        return self.top_k * (self.precision // 8) + ids + 4 + observed

    def choose(self, first: Tensor, num_rows: int) -> Tensor:
        """Returns which of all rows are stored.

        Args:
            first: ``[S]`` first row of each span.
            num_rows: Q.

        Returns:
            ``[Q]`` bool.
        """
        if self.rows == "all":
            return torch.ones(num_rows, dtype=torch.bool, device=first.device)
        return torch.zeros(num_rows, dtype=torch.bool, device=first.device).index_fill(0, first, value=True)

    def encode(self, log_probs: Tensor, labels: Tensor) -> RowArrays:
        """Encodes rows that are stored: log-probabilities ``[P, V_t]``, and tokens ``[P]`` that the rows predict."""
        if self.top_k == "all":
            return {"log_probs": self._encode(log_probs)}
        top = log_probs.topk(self.top_k, dim=-1)
        others = log_probs.scatter(1, top.indices, -torch.inf)
        if self.rows == "all":
            others.scatter_(1, labels[:, None], -torch.inf)
        return self.encode_top(top.values, top.indices, others.logsumexp(-1))

    def encode_top(self, log_probs: Tensor, ids: Tensor, log_tail: Tensor) -> RowArrays:
        """Encodes the k most probable tokens ``[P, k]`` of rows, and the logarithm ``[P]`` of their tail's mass."""
        low, high = pack_ids(ids.cpu().numpy(), self.num_ids)
        return {
            "log_probs": self._encode(log_probs),
            "ids_low": low,
            "ids_high": high,
            "log_tail": log_tail.float().cpu().numpy(),
        }

    def encode_observed(self, tempered: Tensor, plain: Tensor, spans: SpanBatch) -> RowArrays:
        """Encodes the log-probabilities of the observed tokens of all rows.

        Args:
            tempered: ``[Q]`` at the teacher's temperature.
            plain: ``[Q]`` at temperature 1.
            spans: Spans of the rows.
        """
        if self.rows == "all":
            observed = {"log_observed": tempered} | ({"log_text": plain} if self.has_text else {})
        else:
            is_first = self.choose(spans.teacher_first, len(tempered))
            continuation = tempered.masked_fill(is_first, 0.0)
            sums = {"log_continuation": continuation, "log_span": plain}
            observed = {name: sum_by_span(values, spans.teacher_span, len(spans)) for name, values in sums.items()}
        return {name: values.float().cpu().numpy() for name, values in observed.items()}

    def nothing(self) -> RowArrays:
        """Returns the arrays of no row."""
        none, rows = torch.empty(0), torch.empty(0, dtype=torch.int64)
        spans = SpanBatch(*[rows] * 6)
        return self.encode(torch.empty(0, self.num_ids), rows) | self.encode_observed(none, none, spans)

    def edges(self, spans: SpanBatch, span_edges: NDArray[np.int64]) -> NDArray[np.int64]:
        """Converts numbers of spans to the numbers of stored rows up to their ends."""
        if self.rows == "span_starts":
            return span_edges
        lengths = spans.teacher_length.numpy(force=True)
        return np.concatenate(([0], np.cumsum(lengths)))[span_edges]

    def _encode(self, log_probs: Tensor) -> NDArray:
        values = log_probs.float().cpu().numpy()
        return values if self.precision == 32 else quantize(values)
