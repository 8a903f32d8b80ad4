"""Runs a teacher over windows and encodes the rows that its loss needs for every span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch import RowArrays, SpanBatch, TeacherBatch
from xtoken_pl.batch.quantization import num_high_bits, pack_ids, quantize
from xtoken_pl.data import collate
from xtoken_pl.losses.base import observed_log_probs
from xtoken_pl.models import Head
from xtoken_pl.models.head import logits
from xtoken_pl.teachers.cache.manifest import TopK
from xtoken_pl.teachers.local import FrozenModel
from xtoken_pl.utilities.errors import UserError

# S spans, Q teacher rows, P rows of a block, V_t teacher's vocabulary size, k tokens stored per row

#: Size of the logits of a block of rows; a few tensors of this size exist at a time.
_BLOCK_BYTES = 2**27


@dataclass(frozen=True)
class RowFormat:
    """Storage format of a row.

    Attributes:
        top_k: Number of most probable tokens stored per row, or ``all``.
        precision: Bits per log-probability, 16 or 32.
        num_ids: V_t, including ids without a token.
        num_tokens: Number of ids with a token.

    Raises:
        UserError: If ``top_k`` or ``precision`` is out of range.
    """

    top_k: TopK
    precision: int
    num_ids: int
    num_tokens: int

    def __post_init__(self) -> None:
        if self.precision not in (16, 32):
            raise UserError(f"precision must be 16 or 32 bits, got {self.precision}")
        if self.top_k != "all" and not 1 <= self.top_k < self.num_tokens:
            raise UserError(
                f"top_k must be >= 1 and less than the teacher's {self.num_tokens:,} tokens, got {self.top_k}; "
                "'all' stores every token"
            )

    @property
    def bytes_per_span(self) -> int:
        """Bytes stored per span."""
        if self.top_k == "all":
            return self.num_ids * self.precision // 8 + 8
        return self.top_k * (self.precision // 8 + 2) + num_high_bits(self.num_ids) * -(-self.top_k // 8) + 12

    def nothing(self) -> RowArrays:
        """Returns the arrays of no span."""
        none = np.empty(0, dtype=np.float32)
        return self.encode(torch.empty(0, self.num_ids)) | {"log_continuation": none, "log_span": none}

    def encode(self, log_probs: Tensor) -> RowArrays:
        """Encodes log-probabilities ``[P, V_t]`` as arrays of P rows."""
        if self.top_k == "all":
            return {"log_probs": self._encode(log_probs)}
        top = log_probs.topk(self.top_k, dim=-1)
        log_tail = log_probs.scatter(1, top.indices, -torch.inf).logsumexp(-1)
        low, high = pack_ids(top.indices.cpu().numpy(), self.num_ids)
        return {
            "log_probs": self._encode(top.values),
            "ids_low": low,
            "ids_high": high,
            "log_tail": log_tail.float().cpu().numpy(),
        }

    def _encode(self, log_probs: Tensor) -> NDArray:
        values = log_probs.float().cpu().numpy()
        return values if self.precision == 32 else quantize(values)


@dataclass(frozen=True)
class TeacherRows:
    """Computes and encodes a teacher's rows.

    Attributes:
        name: Name of the teacher in the windows.
        model: Model of the teacher.
        row_format: Storage format of the rows.
        temperature: Temperature of the distributions.
        device: Device of the forward passes.
    """

    name: str
    model: FrozenModel
    row_format: RowFormat
    temperature: float
    device: torch.device

    @torch.no_grad()
    def compute(self, windows: Sequence[dict[str, Any]], place: str) -> tuple[list[RowArrays], int]:
        """Computes the rows to store for each window, and the number of learned student tokens.

        The teacher is not run if no window has a span with it.

        Args:
            windows: Windows of one batch.
            place: Origin of the windows, for messages.

        Raises:
            UserError: If the teacher's log-probabilities are NaN or infinite.
        """
        batch = collate(windows, [self.name])
        if not len(batch.teachers[self.name].spans):
            return [self.row_format.nothing()] * len(windows), len(batch.student.labels)
        view = batch.teachers[self.name].to(self.device)
        tokens = view.tokens
        hidden, head = self.model.run(tokens.input_ids, tokens.attention_mask, tokens.position_ids)
        arrays, is_finite = self._arrays(hidden.flatten(0, 1).index_select(0, tokens.rows), head, view)
        if not is_finite:
            raise UserError(
                f"log-probabilities must be finite, but those of teacher {self.name!r} are not in {place}. Either its "
                "dtype overflows (use bfloat16 or float32 instead of float16), or its weights are damaged: check "
                "them. Finished shards are kept; this one is not written"
            )
        # Rows index the padded student sequences, window by window.
        sequence = batch.student.rows // batch.student.input_ids.shape[1]
        of_span = sequence[batch.teachers[self.name].spans.student_first].numpy()
        edges = np.searchsorted(of_span, np.arange(len(windows) + 1))
        split = [{name: values[start:end] for name, values in arrays.items()} for start, end in pairwise(edges)]
        return split, len(batch.student.labels)

    def _arrays(self, hidden: Tensor, head: Head, view: TeacherBatch) -> tuple[RowArrays, bool]:
        """Rows of all spans of a batch, from hidden states ``[Q, H]``, and whether they are finite."""
        spans = view.spans
        is_first = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        is_first[spans.teacher_first] = True
        parameters = head.parameters()
        size = max(1, _BLOCK_BYTES // (4 * head.vocabulary_size))
        parts: list[RowArrays] = []
        tempered, plain, highest = [], [], []
        for rows in (slice(start, start + size) for start in range(0, max(1, len(hidden)), size)):
            block, labels = logits(hidden[rows], *parameters), view.tokens.labels[rows]
            log_probs = head.normalize(block, self.temperature)  # [P, V_t]
            stored = log_probs[is_first[rows]]
            parts.append(self.row_format.encode(stored))
            highest.append(stored.amax(-1))  # the others may be -inf: ids without a token
            tempered.append(observed_log_probs(log_probs, labels))
            plain.append(tempered[-1] if self.temperature == 1.0 else observed_log_probs(head.normalize(block), labels))
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        continuation = _sum(torch.cat(tempered).masked_fill(is_first, 0.0), spans)
        span = _sum(torch.cat(plain), spans)
        # Checked before quantization, since the 16-bit format cannot represent NaN.
        is_finite = bool(torch.cat((*highest, continuation, span)).isfinite().all())
        return arrays | {"log_continuation": continuation.cpu().numpy(), "log_span": span.cpu().numpy()}, is_finite


def _sum(values: Tensor, spans: SpanBatch) -> Tensor:
    return values.new_zeros(len(spans)).index_add(0, spans.teacher_span, values).float()
