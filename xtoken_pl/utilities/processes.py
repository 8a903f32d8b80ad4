"""Communication between the processes of a run."""

from __future__ import annotations

from typing import TypeVar

import torch

T = TypeVar("T")


def gather(own: T) -> list[T]:
    """Gathers the values of all processes, in the order of ranks; every process has to call it."""
    if not torch.distributed.is_initialized():
        return [own]
    values: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, own)
    return values  # type: ignore[return-value]
