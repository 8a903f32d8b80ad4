"""Makes the rows that a cache stores from those of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xtoken_pl.batch import AllRows, RowArrays, TeacherBatch
from xtoken_pl.batch.quantization import floats_of
from xtoken_pl.teachers.cache.row_format import RowFormat
from xtoken_pl.teachers.served.teacher import ServedTeacher
from xtoken_pl.tokenization import CanonicalVocabulary

# P rows, k tokens stored of each, V_t teacher's vocabulary size


@dataclass(frozen=True)
class ServedRows:
    """Asks a server for a teacher's rows, and encodes them.

    Attributes:
        teacher: Teacher behind a server.
        row_format: Storage format of the rows.
    """

    teacher: ServedTeacher
    row_format: RowFormat

    def arrays(self, view: TeacherBatch) -> RowArrays:
        """See :meth:`xtoken_pl.teachers.cache.teacher_rows.RowMaker.arrays`; a server's numbers have been checked."""
        (known,), labels = self.teacher.ask([view.tokens]), view.tokens.labels
        observed = floats_of(known.log_observed)
        is_stored = self.row_format.choose(view.spans.teacher_first, len(labels))
        arrays = encode_known(known.select(is_stored), labels[is_stored], self.row_format, self.teacher.vocabulary)
        return arrays | self.row_format.encode_observed(observed, observed, view.spans)


def encode_known(known: AllRows, labels: Tensor, row_format: RowFormat, vocabulary: CanonicalVocabulary) -> RowArrays:
    """Encodes rows of a server, which have at least as many tokens as are stored.

    Args:
        known: The rows.
        labels: ``[P]`` tokens that they predict.
        row_format: Storage format.
        vocabulary: Vocabulary of the teacher.
    """
    log_probs, top_k = floats_of(known.top.log_probs), row_format.top_k
    if known.top.ids is None or known.top.log_tail is None:
        return row_format.encode(log_probs, labels)
    assert top_k != "all", "refused before the server is asked"
    log_probs, ids, log_tail = _without_gaps(known, labels, torch.from_numpy(vocabulary.exists))
    is_observed = ids == labels[:, None]
    left_out = log_probs.masked_fill(is_observed, -torch.inf)[:, top_k:]
    log_tail = torch.cat((log_tail[:, None], left_out), dim=1).logsumexp(1)
    if row_format.rows == "span_starts":
        with_observed = torch.logaddexp(log_tail, floats_of(known.log_observed))
        log_tail = torch.where(is_observed[:, :top_k].any(1), log_tail, with_observed)
    return row_format.encode_top(log_probs[:, :top_k], ids[:, :top_k], log_tail)


def _without_gaps(known: AllRows, labels: Tensor, exists: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fills places without a token with tokens of the tail and their even shares, so that every place has a token.

    Returns:
        Log-probabilities ``[P, k]`` in descending order, ids ``[P, k]`` and the logarithm ``[P]`` of the tail's mass.
    """
    assert known.top.ids is not None
    assert known.top.log_tail is not None
    log_probs, ids = floats_of(known.top.log_probs).clone(), known.top.ids.long()
    log_tail = floats_of(known.top.log_tail).clone()
    is_gap = ids >= len(exists)
    for row in is_gap.any(1).nonzero().flatten().tolist():
        gaps, in_tail = is_gap[row], exists.clone()
        in_tail[ids[row][~gaps]] = in_tail[labels[row]] = False
        tail = in_tail.nonzero().flatten()
        filled = gaps.nonzero().flatten()[: len(tail)]
        ids[row, filled] = tail[: len(filled)]
        log_probs[row, filled] = share = log_tail[row] - math.log(max(1, len(tail)))
        log_tail[row] = share + torch.tensor(float(len(tail) - len(filled))).log()
    order = log_probs.argsort(dim=1, descending=True, stable=True)
    return log_probs.gather(1, order), ids.gather(1, order), log_tail
