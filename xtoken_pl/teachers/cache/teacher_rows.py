"""Computes the rows of windows that a cache stores, with the teacher's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from xtoken_pl.batch import RowArrays, TeacherBatch
from xtoken_pl.data import collate
from xtoken_pl.losses.base import observed_log_probs
from xtoken_pl.models import Head
from xtoken_pl.models.head import logits
from xtoken_pl.teachers.cache.row_format import RowFormat
from xtoken_pl.teachers.local import FrozenModel
from xtoken_pl.utilities.errors import UserError

# Q teacher rows, P rows of a block, V_t teacher's vocabulary size, H hidden size

#: Size of the logits of a block of rows; a few tensors of this size exist at a time.
_BLOCK_BYTES = 2**27


class NotFiniteError(ValueError):
    """Log-probabilities that are NaN or infinite."""


class RowMaker(Protocol):
    """Makes the stored arrays of a batch, in a format."""

    @property
    def row_format(self) -> RowFormat:
        """The format."""

    def arrays(self, view: TeacherBatch) -> RowArrays:
        """Makes the arrays of all spans of a batch, which is on the CPU.

        Raises:
            NotFiniteError: If the teacher's log-probabilities are NaN or infinite.
        """


@dataclass(frozen=True)
class TeacherRows:
    """Rows of a teacher, window by window.

    Attributes:
        name: Name of the teacher in the windows.
        maker: Model or server of the teacher.
    """

    name: str
    maker: RowMaker

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
        batch, row_format = collate(windows, [self.name]), self.maker.row_format
        view = batch.teachers[self.name]
        if not len(view.spans):
            return [row_format.nothing()] * len(windows), len(batch.student.labels)
        try:
            arrays = self.maker.arrays(view)
        except NotFiniteError:
            raise UserError(
                f"log-probabilities must be finite, but those of teacher {self.name!r} are not in {place}. Either its "
                "dtype overflows (use bfloat16 or float32 instead of float16), or its weights are damaged: check "
                "them. Finished shards are kept; this one is not written"
            ) from None
        # Rows index the padded student sequences, window by window.
        sequence = batch.student.rows // batch.student.input_ids.shape[1]
        of_span = sequence[view.spans.student_first].numpy()
        edges = row_format.edges(view.spans, np.searchsorted(of_span, np.arange(len(windows) + 1)))
        split = [{name: values[start:end] for name, values in arrays.items()} for start, end in pairwise(edges)]
        return split, len(batch.student.labels)


@dataclass(frozen=True)
class ModelRows:
    """Runs a teacher's model, and encodes its rows block by block.

    Attributes:
        model: Model of the teacher.
        row_format: Storage format of the rows.
        temperature: Temperature of the distributions.
        device: Device of the forward passes.
    """

    model: FrozenModel
    row_format: RowFormat
    temperature: float
    device: torch.device

    def arrays(self, view: TeacherBatch) -> RowArrays:
        """See :meth:`RowMaker.arrays`."""
        view = view.to(self.device)
        tokens = view.tokens
        hidden, head = self.model.run(tokens.input_ids, tokens.attention_mask, tokens.position_ids)
        return self._encoded(hidden.flatten(0, 1).index_select(0, tokens.rows), head, view)

    def _encoded(self, hidden: Tensor, head: Head, view: TeacherBatch) -> RowArrays:
        """Encodes the rows of hidden states ``[Q, H]``."""
        is_stored = self.row_format.choose(view.spans.teacher_first, len(hidden))
        parameters = head.parameters()
        size = max(1, _BLOCK_BYTES // (4 * head.vocabulary_size))
        parts: list[RowArrays] = []
        tempered, plain, highest = [], [], []
        for rows in (slice(start, start + size) for start in range(0, max(1, len(hidden)), size)):
            block, labels = logits(hidden[rows], *parameters), view.tokens.labels[rows]
            log_probs = head.normalize(block, self.temperature)  # [P, V_t]
            tempered.append(observed_log_probs(log_probs, labels))
            plain.append(tempered[-1] if self.temperature == 1.0 else observed_log_probs(head.normalize(block), labels))
            stored = log_probs[is_stored[rows]]
            parts.append(self.row_format.encode(stored, labels[is_stored[rows]]))
            highest.append(stored.amax(-1))  # the others may be -inf: ids without a token
        # Checked before quantization, since the 16-bit format cannot represent NaN.
        if not torch.cat((*highest, *tempered, *plain)).isfinite().all():
            raise NotFiniteError
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return arrays | self.row_format.encode_observed(torch.cat(tempered), torch.cat(plain), view.spans)
