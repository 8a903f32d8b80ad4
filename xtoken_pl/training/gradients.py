"""Norm, clipping and copies of gradients whose parameters are sharded over different processes.

With tensor parallelism, the matrices of layers, their other weights, and what is outside of the layers have meshes of
their own, and torch's functions take the tensors of one mesh at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Lists the gradients that there are."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Returns the 2-norm of all gradients together, sharded or not; every process has to call it.

    It is the same to the last bit in all processes: what clips copies of a weight must not differ.
    """
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    if len({gradient.device_mesh for gradient in sharded}) < 2:
        norm = get_total_norm(gradients)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm
    norms = torch.stack([torch.linalg.vector_norm(_single(gradient.to_local())) for gradient in sharded])
    copies = norms.new_tensor([_num_copies(gradient) for gradient in sharded])
    total = (norms.square() / copies).sum()
    torch.distributed.all_reduce(total)
    return total.sqrt()


def clip(gradients: Sequence[Tensor], limit: float, algorithm: str) -> None:
    """Clips gradients as torch does, where their meshes differ; every process has to call it.

    Args:
        gradients: Gradients, changed in place.
        limit: Largest norm, or largest absolute value.
        algorithm: ``norm`` or ``value``, the ones that Lightning knows.
    """
    own = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    if algorithm == "value":
        for gradient in own:
            gradient.clamp_(-limit, limit)
    else:
        factor = (limit / (total_norm(gradients) + 1e-6)).clamp(max=1.0)
        for gradient in own:
            gradient.mul_(factor)


def average_copies(parameters: Iterable[nn.Parameter], group: ProcessGroup) -> None:
    """Averages the gradients of weights that all processes of a tensor-parallel group hold whole, the norms of layers.

    They are equal up to rounding, and stay so: otherwise the copies of a weight would drift apart.

    Args:
        parameters: Parameters of a student that is split over ``group``.
        group: The processes of the tensor-parallel group.
    """
    copies = [grad for grad in gradients_of(parameters) if isinstance(grad, DTensor) and _num_copies(grad) > 1]
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in copies:
        by_dtype.setdefault(gradient.dtype, []).append(gradient.to_local())
    for own in by_dtype.values():
        total = torch.cat([part.flatten() for part in own])
        torch.distributed.all_reduce(total, group=group)
        total /= group.size()
        for part, mean in zip(own, total.split([part.numel() for part in own]), strict=True):
            part.copy_(mean.view_as(part))


def _num_copies(gradient: DTensor) -> int:
    """Number of processes that hold the same part."""
    mesh = gradient.device_mesh
    sizes = [mesh.size(place) for place, placement in enumerate(gradient.placements) if not placement.is_replicate()]
    return torch.distributed.get_world_size() // math.prod(sizes)


def _single(values: Tensor) -> Tensor:
    """The values in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
