"""Shards a model over processes with FSDP2, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import cast

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers import PreTrainedModel

from xtoken_pl.models.causal_lm import GATHERING_STATES, states_of_body
from xtoken_pl.utilities.errors import UserError


def data_parallel_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The processes that shard the models, of the mesh that Lightning's ``ModelParallelStrategy`` makes.

    Raises:
        UserError: If some of them are set aside for tensor parallelism.
    """
    if mesh["tensor_parallel"].size() > 1:
        raise UserError(
            "ModelParallelStrategy must leave every process to data parallelism, since the models are sharded layer by "
            f"layer and their matrices are not split; got tensor_parallel_size={mesh['tensor_parallel'].size()} and "
            f"data_parallel_size={mesh['data_parallel'].size()}. Set tensor_parallel_size: 1 and data_parallel_size to "
            "the number of processes (devices x nodes)"
        )
    return mesh["data_parallel"]


def shard(model: PreTrainedModel, mesh: DeviceMesh, *, cpu_offload: bool = False) -> None:
    """Divides every layer, and what is left (embedding, last norm, head) as one, among the processes of ``mesh``.

    A layer is gathered while it runs. The rest is gathered when the hidden states are computed, and stays until the
    backward pass has ended, so that the losses find the whole head; without a backward pass :func:`release` frees it.

    Args:
        cpu_offload: Keep the shards in the host's memory.
    """
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cpu_offload else OffloadPolicy()
    for layer in layers(model):
        fully_shard(layer, mesh=mesh, offload_policy=offload)
    fully_shard(model, mesh=mesh, offload_policy=offload)
    # The head is applied apart from the model's own forward; this is what FSDP is to see as one.
    setattr(model, GATHERING_STATES, MethodType(states_of_body, model))
    register_fsdp_forward_method(model, GATHERING_STATES)


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` was applied."""
    return isinstance(model, FSDPModule)


def release(model: nn.Module) -> None:
    """Frees what a pass without a backward pass has left gathered."""
    if isinstance(model, FSDPModule):
        model.reshard()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """The whole weights in every process, so that each can run the model as often as it likes, without a gradient.

    Every process has to enter and leave it. A model that is not sharded is left alone.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)  # as `shard` left them


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks of a model.

    Raises:
        UserError: If none can be told.
    """
    names = set(model._no_split_modules or [])
    found = [module for module in model.modules() if type(module).__name__ in names]
    # An embedding may be marked as indivisible, too.
    found = [module for module in found if any(isinstance(part, nn.Linear) for part in module.modules())]
    if not found:
        raise UserError(
            f"{type(model).__name__} does not name its layers (_no_split_modules: {sorted(names) or 'none'}), so that "
            "it cannot be sharded or compiled layer by layer; use a model of transformers that does, or run it on one "
            "device or under DDP, not compiled"
        )
    return found


def compile_layers(model: PreTrainedModel) -> None:
    """Compiles every layer by itself, in place: one graph serves them all, and sharding still sees them."""
    for layer in layers(model):
        layer.compile()


def full_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole weights, gathered in the host's memory of the first process; of the others an empty dict if sharded.

    Every process has to call it.
    """
    if not is_sharded(model):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, torch.Tensor], get_model_state_dict(model, options=options))
