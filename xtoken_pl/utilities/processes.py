"""What the processes of a run tell each other."""

from __future__ import annotations

from typing import TypeVar

import torch

T = TypeVar("T")


def gather(own: T) -> list[T]:
    """The value of every process, in the order of ranks; to be called by all of them."""
    if not torch.distributed.is_initialized():
        return [own]
    values: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, own)
    return values  # type: ignore[return-value]
