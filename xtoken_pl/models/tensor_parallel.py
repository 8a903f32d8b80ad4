"""Splits the matrices of a model's layers over processes: tensor parallelism, as transformers plans each architecture.

The processes of a group read the same batch. Each multiplies with its part of a layer's matrices, and sums over the
group make the states behind every layer whole again. What is outside of the layers, the head above all, is not split.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import parallelize_module
from transformers import PreTrainedModel

from xtoken_pl.models.causal_lm import body_of, hidden_states, relative_tolerance
from xtoken_pl.models.tensor_parallel_plan import LINEAR, SUMMED, WAY_OUT, planned_styles
from xtoken_pl.utilities.errors import UserError

_NUM_CHECKED_TOKENS = 8


def tensor_mesh(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """Returns the dimension of Lightning's mesh that matrices are split over; None if it has one process."""
    found = None if mesh is None or mesh.ndim == 1 else mesh["tensor_parallel"]
    return None if found is None or found.size() == 1 else found


def sharding_mesh(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """Returns the dimensions of Lightning's mesh that a model is sharded over: both only if matrices are split."""
    return mesh if mesh is None or tensor_mesh(mesh) is not None else mesh["data_parallel"]


class TensorParallelSplit:
    """Splits a model over the processes of a group, in place and part by part; all of them hold the same model before.

    Each part moves to the device of the mesh when it is split, so that the device need not hold the whole model. The
    model is run on a short input now, and once more by :meth:`check`.

    Args:
        model: A model that passes :func:`xtoken_pl.models.tensor_parallel_plan.check_can_be_split`, not sharded yet;
            it may have got a LoRA since.
        mesh: Processes of the group, in one dimension.
    """

    def __init__(self, model: PreTrainedModel, mesh: DeviceMesh) -> None:
        self._model, self._mesh = model, mesh
        modules = dict(body_of(model).named_modules())
        self._left = {modules[name]: style for name, style in planned_styles(model).items()}
        self._expected = _states(model, model.get_input_embeddings().weight.device)

    def split(self, part: nn.Module) -> None:
        """Splits the matrices of a part of the model that are not split yet."""
        for module in [module for module in part.modules() if module in self._left]:
            style = self._left.pop(module)
            if style == SUMMED:
                _sum_gradients(module, self._mesh.get_group())
                continue
            for layer in _layers_to_split(module, style):
                parallelize_module(layer, self._mesh, LINEAR[style](), src_data_rank=None)

    def check(self) -> None:
        """Checks the states of the model, which is split and whose weights are all on the device, sharded or not.

        Raises:
            UserError: If the model has other hidden states than before.
        """
        model = self._model
        found = _states(model, torch.device(self._mesh.device_type)).to(self._expected.device)
        difference = ((found - self._expected).abs().max() / self._expected.abs().max()).item()
        if not difference <= relative_tolerance(model.dtype):
            raise UserError(
                "a model must have the same hidden states when its layers are split, but those of "
                f"{type(model).__name__} differ by {difference:.4g} of the largest (allowed "
                f"{relative_tolerance(model.dtype):.2g}); {WAY_OUT}"
            )


def _layers_to_split(module: Any, style: str) -> list[nn.Module]:
    """The linear layers that a style is for: the module, or the one below a new LoRA and one factor of its product.

    Of ``B A x``, B is split where the output is, A where the input is, and neither where both are whole.
    """
    if not hasattr(module, "base_layer"):
        return [module]
    factors = {"colwise": module.lora_B, "rowwise": module.lora_A}.get(style, {})
    return [module.base_layer, *factors.values()]


@torch.no_grad()
def _states(model: PreTrainedModel, device: torch.device) -> Tensor:
    ids = torch.arange(_NUM_CHECKED_TOKENS, device=device)[None] % model.config.get_text_config().vocab_size
    return hidden_states(model, ids, torch.ones_like(ids))


class _Summed(torch.autograd.Function):
    """The identity, whose gradient is summed over the processes of a group."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=ctx.group)
        return total, None


def _sum_gradients(module: nn.Module, group: Any) -> None:
    """Makes a module read its own weights through :class:`_Summed`."""
    forward = module.forward

    def summing(*inputs: Any, **options: Any) -> Any:
        own = {name: weight for name, weight in module._parameters.items() if weight is not None}
        summed: dict[str, Any] = {name: _Summed.apply(weight, group) for name, weight in own.items()}
        module._parameters.update(summed)
        try:
            return forward(*inputs, **options)
        finally:
            module._parameters.update(own)

    module.forward = summing
