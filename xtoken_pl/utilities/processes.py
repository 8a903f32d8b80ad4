"""Communication between the processes of a run."""

from __future__ import annotations

from typing import TypeVar

import lightning.pytorch as pl
import torch

T = TypeVar("T")


def gather(own: T) -> list[T]:
    """Gathers the values of all processes, in the order of ranks; every process has to call it."""
    if not torch.distributed.is_initialized():
        return [own]
    values: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, own)
    return values  # type: ignore[return-value]


def data_share(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Returns the number of this process, from 0, among those that read different batches, and how many these are.

    The processes of a tensor-parallel group read the same batches, and count as one.
    """
    shared = (None if trainer is None else trainer.distributed_sampler_kwargs) or {}
    return shared.get("rank", 0), shared.get("num_replicas", 1)


def gather_shares(own: T, trainer: pl.Trainer | None) -> list[T]:
    """Gathers the values of the processes that read different batches; every process has to call it.

    Of each tensor-parallel group it is the value of the first process.
    """
    values = gather(own)
    _, num_shares = data_share(trainer)
    return values[:: len(values) // num_shares]
