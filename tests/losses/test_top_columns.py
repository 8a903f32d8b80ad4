"""The k highest columns of a row: those that torch.topk finds, whatever the values look like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xtoken_pl.losses.top_columns import top_columns

V = 20_000  # so many that a sample is looked at first
K = 1_500


@pytest.fixture(autouse=True)
def _few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many threads there is nothing but torch.topk."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def rows(kind: str) -> Tensor:
    """``[3, V]`` values."""
    generator = torch.Generator().manual_seed(1)
    random = torch.randn(3, V, dtype=torch.float64, generator=generator)
    column = torch.arange(V)
    forms = {
        "random": random,
        "log-probabilities": (5 * random).log_softmax(-1),
        "ascending": column.double().expand(3, V).clone(),
        "descending": -column.double().expand(3, V).clone(),
        "equal": torch.zeros(3, V, dtype=torch.float64),
        "a few different values": (2 * random).round(),
        "one tie at the k-th": random.sort(-1, descending=True).values.clone(),
        "only sampled columns are high": random + 100 * (column % (V // 4096) == 0),
        "no sampled column is high": random - 100 * (column % (V // 4096) == 0),
        "ids that do not exist": random.masked_fill(column % 3 == 0, -torch.inf),
        "fewer than k that exist": random.masked_fill(column >= K - 1, -torch.inf),
        "none that exists": torch.full((3, V), -torch.inf, dtype=torch.float64),
    }
    forms["one tie at the k-th"][:, K] = forms["one tie at the k-th"][:, K - 1]
    # The rows are alike but for their order, and the last one is easy.
    values = forms[kind]
    values[1] = values[1].flip(0)
    values[2] = random[2]
    return values


KINDS = (
    "random",
    "log-probabilities",
    "ascending",
    "descending",
    "equal",
    "a few different values",
    "one tie at the k-th",
    "only sampled columns are high",
    "no sampled column is high",
    "ids that do not exist",
    "fewer than k that exist",
    "none that exists",
)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, dtype) for kind in KINDS for dtype in (torch.float64, torch.float32)), ("random", torch.bfloat16)],
    ids=str,
)
def test_the_columns_are_those_of_topk(kind: str, dtype: torch.dtype) -> None:
    values = rows(kind).to(dtype)
    found = top_columns(values, K).sort(-1).values
    assert found.dtype == torch.int64
    assert (found[:, 1:] > found[:, :-1]).all(), "a column is there twice"
    # Of equal values, too, the same ones.
    torch.testing.assert_close(found, values.topk(K, sorted=False).indices.sort(-1).values, rtol=0, atol=0)


@pytest.mark.parametrize("k", [1, 16, V // 64, V // 64 + 1, 1024, V // 4, V // 4 + 1, V - 1, V])
def test_every_k_finds_the_highest_values(k: int) -> None:
    values = rows("random")
    found = top_columns(values, k)
    assert found.shape == (3, k)
    is_found = torch.zeros(3, V, dtype=torch.bool).scatter_(1, found, value=True)
    assert (is_found.sum(-1) == k).all()
    for row, is_high in zip(values, is_found, strict=True):
        assert k == V or row[is_high].min() > row[~is_high].max()


@pytest.mark.parametrize("num_columns", [1, 7, 4096, 4 * 4096 - 1, 4 * 4096, 5 * 4096 - 1])
def test_rows_of_any_length_and_layout(num_columns: int) -> None:
    values = torch.randn(num_columns, 4, generator=torch.Generator().manual_seed(2)).t()
    k = max(1, num_columns // 8)
    expected = values.topk(k, sorted=False).indices.sort(-1).values
    torch.testing.assert_close(top_columns(values, k).sort(-1).values, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("num_threads", "sorts"), [(1, False), (3, False), (4, True)])
def test_whole_rows_are_sorted_only_where_threads_share_them(
    num_threads: int, monkeypatch: pytest.MonkeyPatch, *, sorts: bool
) -> None:
    num_calls = []
    topk = Tensor.topk

    def watched(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        num_calls.append(1)
        return topk(self, *args, **kwargs)

    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    monkeypatch.setattr(Tensor, "topk", watched)
    top_columns(rows("random"), K)
    assert len(num_calls) == sorts


def test_no_row_has_no_columns() -> None:
    assert top_columns(torch.empty(0, V), K).shape == (0, K)


def test_a_gradient_does_not_stand_in_the_way() -> None:
    values = rows("random").requires_grad_()
    torch.testing.assert_close(top_columns(values, K), top_columns(values.detach(), K), rtol=0, atol=0)
