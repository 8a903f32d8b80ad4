"""Communication between the processes of a run."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import lightning.pytorch as pl
import torch
from torch.distributed import ProcessGroup

T = TypeVar("T")


class DataShare(NamedTuple):
    """The share of the data that a process reads."""

    #: Number of the share, from 0.
    rank: int
    #: Number of all shares.
    number: int


def gather(own: T, group: ProcessGroup | None = None) -> list[T]:
    """Gathers the values of all processes, or of a group, in the order of ranks; each of them has to call it."""
    if not torch.distributed.is_initialized():
        return [own]
    values: list[T | None] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(values, own, group=group)
    return values  # type: ignore[return-value]


def data_share(trainer: pl.Trainer | None) -> DataShare:
    """Returns which of the different batches of a run this process reads.

    The processes of a tensor-parallel group read the same batches, and have the same share.
    """
    shared = (None if trainer is None else trainer.distributed_sampler_kwargs) or {}
    return DataShare(shared.get("rank", 0), shared.get("num_replicas", 1))


def gather_shares(own: T, trainer: pl.Trainer | None) -> list[T]:
    """Gathers the values of the processes that read different batches; every process has to call it.

    Of each tensor-parallel group it is the value of the first process.
    """
    values = gather(own)
    return values[:: len(values) // data_share(trainer).number]
