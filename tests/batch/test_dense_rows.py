"""Stored rows as a loss reads them: what is known of a row is exact, and its tail is spread evenly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xtoken_pl.batch import AllRows, KnownRows, SpanBatch
from xtoken_pl.losses.row_content import RowKind
from xtoken_pl.teachers.cache.manifest import TopK
from xtoken_pl.teachers.cache.row_format import RowFormat

V, HOLES, NUM_SPANS, NUM_ROWS = 23, [4, 22], 5, 8


def rows_of_text() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities ``[Q, V]``, observed tokens ``[Q]`` and holes ``[V]``."""
    generator = torch.Generator().manual_seed(0)
    holes = torch.zeros(V, dtype=torch.bool).index_fill(0, torch.tensor(HOLES), value=True)
    logits = 3 * torch.randn(NUM_ROWS, V, generator=generator)
    log_probs = logits.masked_fill(holes, -torch.inf).log_softmax(-1)
    order = log_probs.argsort(1, descending=True)
    # The observed token is among the most probable ones, and behind them.
    labels = order[torch.arange(NUM_ROWS), torch.tensor([0, 1, 2, 3, 4, 9, 15, 20])]
    return log_probs, labels, holes


def spans_of_text() -> SpanBatch:
    """Spans of one or two teacher rows."""
    first, length = torch.tensor([0, 1, 3, 4, 6]), torch.tensor([1, 2, 1, 2, 2])
    span = torch.repeat_interleave(torch.arange(NUM_SPANS), length)
    each = torch.arange(NUM_SPANS)
    return SpanBatch(each, torch.ones_like(each), first, length, each, span)


def stored(rows: RowKind, top_k: TopK, precision: int = 32, *, has_text: bool = False) -> KnownRows:
    """The rows of the text in a format."""
    log_probs, labels, _ = rows_of_text()
    spans, row_format = spans_of_text(), RowFormat(rows, top_k, precision, V, V - len(HOLES), has_text)
    is_stored = row_format.choose(spans.teacher_first, NUM_ROWS)
    observed = log_probs.gather(1, labels[:, None]).squeeze(1)
    arrays = row_format.encode(log_probs[is_stored], labels[is_stored])
    arrays |= row_format.encode_observed(observed, observed - 1, spans)
    assert sum(values[0].nbytes for values in arrays.values()) == row_format.bytes_per_row
    return KnownRows.from_windows([{name: values[:3] for name, values in arrays.items()},
                                   {name: values[3:] for name, values in arrays.items()}])  # fmt: skip


def expected(rows: RowKind, top_k: TopK) -> tuple[Tensor, Tensor]:
    """The rows as a slow loop reads them, and the tokens that they predict."""
    log_probs, labels, holes = rows_of_text()
    if rows == "span_starts":
        first = spans_of_text().teacher_first
        log_probs, labels = log_probs[first], labels[first]
    result = log_probs.clone()
    for row, label in enumerate(labels.tolist() if top_k != "all" else []):
        kept = set(log_probs[row].topk(top_k).indices.tolist()) | ({label} if rows == "all" else set())
        tail = [token for token in range(V) if token not in kept and not holes[token]]
        result[row, tail] = log_probs[row, tail].exp().mean().log()
    return result, labels


def dense(known: KnownRows, labels: Tensor) -> Tensor:
    return known.dense(labels, rows_of_text()[2], V - len(HOLES))


@pytest.mark.parametrize("rows", ["span_starts", "all"])
@pytest.mark.parametrize("top_k", [1, 3, 20, "all"])
def test_known_tokens_are_exact_and_all_others_share_the_tail(rows: RowKind, top_k: Any) -> None:
    found, (wanted, labels) = stored(rows, top_k), expected(rows, top_k)
    assert len(found) == len(wanted) == (NUM_ROWS if rows == "all" else NUM_SPANS)
    torch.testing.assert_close(dense(found, labels), wanted)
    torch.testing.assert_close(dense(found, labels).exp().sum(1), torch.ones(len(wanted)))


@pytest.mark.parametrize("top_k", [3, "all"])
def test_16_bits_leave_the_observed_token_of_all_rows_exact(top_k: Any) -> None:
    found, (wanted, labels) = dense(stored("all", top_k, 16), expected("all", top_k)[1]), expected("all", top_k)
    torch.testing.assert_close(found, wanted, atol=3e-4, rtol=0)
    assert torch.equal(found.gather(1, labels[:, None]), wanted.gather(1, labels[:, None]))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(NUM_ROWS), atol=3e-4, rtol=0)


def test_sums_of_spans_are_those_of_all_rows() -> None:
    starts, every = stored("span_starts", 3), stored("all", 3, has_text=True)
    assert isinstance(every, AllRows)
    log_probs, labels, _ = rows_of_text()
    observed, spans = log_probs.gather(1, labels[:, None]).squeeze(1), spans_of_text()
    torch.testing.assert_close(every.text, observed - 1)
    for span, (first, length) in enumerate(zip(spans.teacher_first, spans.teacher_length, strict=True)):
        rows = slice(int(first), int(first + length))
        torch.testing.assert_close(starts.continuation[span], observed[rows][1:].sum())
        torch.testing.assert_close(starts.span_log_prob[span], every.text[rows].sum())


def test_the_text_is_known_once_where_the_temperature_is_1() -> None:
    every = stored("all", 3)
    assert isinstance(every, AllRows)
    assert every.log_text is None
    assert torch.equal(every.text, every.log_observed.view(torch.float32))
