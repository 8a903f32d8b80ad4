"""Dataclasses of tensors that move to a device together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Self, cast

import torch
from torch import Tensor


class Movable:
    """Base of dataclasses whose tensors move together, including those of nested dataclasses and dicts."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Returns a copy on ``device``.

        Tensors in page-locked memory are copied without blocking: Lightning passes ``non_blocking`` to plain
        tensors only.
        """
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking or tensor.is_pinned()))

    def pin_memory(self) -> Self:
        """Returns a copy in page-locked memory, for a DataLoader with ``pin_memory``."""
        return self._map(Tensor.pin_memory)

    def unshared(self) -> Self:
        """Returns a copy whose tensors are not in the shared memory of a loader's workers.

        Every tensor that is keeps a file open, so that a process can hold no more than some dozens of batches.
        """
        return self._map(lambda tensor: tensor.clone() if tensor.is_shared() else tensor)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, Movable):
                return value._map(function)
            if isinstance(value, dict):
                return {key: apply(item) for key, item in value.items()}
            return value

        return replace(
            cast(Any, self), **{item.name: apply(getattr(self, item.name)) for item in fields(cast(Any, self))}
        )
