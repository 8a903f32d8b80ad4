"""Shards a model over processes with FSDP2, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import cast

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from xtoken_pl.models.causal_lm import GATHERING_STATES, states_of_body
from xtoken_pl.models.tensor_parallel import TensorParallelSplit, tensor_mesh
from xtoken_pl.utilities.errors import UserError


def shard(model: PreTrainedModel, mesh: DeviceMesh, *, cpu_offload: bool = False) -> None:
    """Shards every layer, and the rest (embedding, last norm, head) as one unit, over the processes of ``mesh``.

    A layer is gathered while it runs. The rest is gathered when the hidden states are computed, and until the end of
    the backward pass, so that the losses have the whole head; without a backward pass, :func:`release` frees it.

    With tensor parallelism, the matrices of the layers are split over a group of processes first, and each layer is
    sharded over the processes that have the same part of it. The rest is sharded over all processes.

    Args:
        model: Model to shard, in place.
        mesh: Processes to shard it over, in one dimension, or all processes in Lightning's two dimensions
            ``data_parallel`` and ``tensor_parallel``.
        cpu_offload: Whether to hold the shards in CPU memory.

    Raises:
        UserError: If the model does not name its layers, or has other hidden states when it is split.
    """
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cpu_offload else OffloadPolicy()
    found = layers(model)
    group = tensor_mesh(mesh)
    splitting = None if group is None else TensorParallelSplit(model, group)
    of_layers = mesh if mesh.ndim == 1 else mesh["data_parallel"]
    of_rest = of_layers if group is None else init_device_mesh(mesh.device_type, (mesh.size(),))
    for layer in found:  # one after the other: a GPU holds one that is not sharded at a time
        if splitting is not None:
            splitting.split(layer)
        fully_shard(layer, mesh=of_layers, offload_policy=offload)
    if splitting is not None:
        splitting.split(model)
    fully_shard(model, mesh=of_rest, offload_policy=offload)
    # The head is applied outside the model's own forward, so FSDP has to treat this method as the forward pass.
    setattr(model, GATHERING_STATES, MethodType(states_of_body, model))
    register_fsdp_forward_method(model, GATHERING_STATES)
    if splitting is not None:
        splitting.check()
        release(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` was applied to ``model``."""
    return isinstance(model, FSDPModule)


def release(model: nn.Module) -> None:
    """Frees the weights that a forward pass without a backward pass has left gathered."""
    if isinstance(model, FSDPModule):
        model.reshard()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gathers the weights in every process, so that each can run the model on its own, without a gradient.

    Every process has to enter and leave the context. A model that is not sharded is not changed.
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
            part.set_reshard_after_forward(part is not model, recurse=False)  # as set by `shard`


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """Lists the repeated blocks of a model, without blocks inside of others.

    Raises:
        UserError: If the model does not name them.
    """
    names = set(model._no_split_modules or [])
    found = [module for module in model.modules() if type(module).__name__ in names]
    # Embeddings may be listed as well, and are dropped.
    found = [module for module in found if any(isinstance(part, nn.Linear | Conv1D) for part in module.modules())]
    # So may parts of a block (Mamba's mixers): FSDP shards from the inside to the outside, or not at all.
    inside = {id(part) for layer in found for part in layer.modules() if part is not layer}
    found = [layer for layer in found if id(layer) not in inside]
    if not found:
        raise UserError(
            f"a model that is sharded or compiled must name its layers, but {type(model).__name__} does not name its "
            f"layers (_no_split_modules: {sorted(names) or 'none'}); use one that does, or run it on one device or "
            "under DDP, not compiled"
        )
    return found


def compile_layers(model: PreTrainedModel) -> None:
    """Compiles every layer separately, in place: all share one graph, and sharding still finds the layers."""
    for layer in layers(model):
        layer.compile()


def full_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the whole weights; a sharded model's are gathered in CPU memory of rank 0, and empty on other ranks.

    Every process has to call this function.
    """
    if not is_sharded(model):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(dict[str, torch.Tensor], get_model_state_dict(model, options=options))
