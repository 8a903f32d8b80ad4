"""Batches move to a device: without waiting if their memory is page-locked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from xtoken_pl.batch.movable import Movable


@dataclass(frozen=True)
class Inner(Movable):
    """Tensors in a dict, and none."""

    parts: dict[str, Tensor]
    plan: Tensor | None = None


@dataclass(frozen=True)
class Outer(Movable):
    """A tensor beside other values."""

    ids: Tensor
    inner: Inner
    name: str


@pytest.mark.parametrize("is_pinned", [False, True])
def test_lightning_moves_page_locked_batches_without_waiting(
    monkeypatch: pytest.MonkeyPatch, *, is_pinned: bool
) -> None:
    waits: list[bool] = []
    to = Tensor.to

    def watched(self: Tensor, device: Any, *, non_blocking: bool = False) -> Tensor:
        waits.append(not non_blocking)
        return to(self, device)

    batch = Outer(torch.arange(3), Inner({"a": torch.ones(2), "b": torch.zeros(0)}), "name")
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "to", watched)
        patch.setattr(Tensor, "is_pinned", lambda self: is_pinned)
        moved = move_data_to_device(batch, torch.device("meta"))
    assert waits == [not is_pinned] * 3
    assert (moved.name, moved.inner.plan) == ("name", None)
    assert moved.ids.is_meta
    assert all(part.is_meta for part in moved.inner.parts.values())
