"""Splits the matrices of a model's layers over processes: tensor parallelism, as transformers plans each architecture.

The processes of a group read the same batch. Each multiplies with its part of a layer's matrices, and sums over the
group make the states behind every layer whole again. What is outside of the layers, the head above all, is not split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from transformers import AutoModelForCausalLM, PreTrainedModel

from xtoken_pl.models.causal_lm import body_of, hidden_states, relative_tolerance
from xtoken_pl.models.text_model import read_config
from xtoken_pl.specs import ModelSource
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import first_of

_WAY_OUT = "set tensor_parallel_size: 1, as --trainer.strategy fsdp2 does, which shards every model"
#: Style whose weights every process holds whole, behind a split layer: each has the gradient of its part alone.
_SUMMED = "replicated_with_grad_allreduce"
#: Style of a linear layer in a plan -> what torch makes of it.
_LINEAR: dict[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    **dict.fromkeys(("colwise_gather_output", "colwise_rep"), partial(ColwiseParallel, output_layouts=Replicate())),
    **dict.fromkeys(("rowwise_split_input", "rowwise_rep"), partial(RowwiseParallel, input_layouts=Replicate())),
}
_NUM_CHECKED_TOKENS = 8


def tensor_mesh(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """Returns the dimension of Lightning's mesh that matrices are split over; None if it has one process."""
    found = None if mesh is None or mesh.ndim == 1 else mesh["tensor_parallel"]
    return None if found is None or found.size() == 1 else found


def sharding_mesh(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """Returns the dimensions of Lightning's mesh that a model is sharded over: both only if matrices are split."""
    return mesh if mesh is None or tensor_mesh(mesh) is not None else mesh["data_parallel"]


def check_source(source: ModelSource, size: int, *, role: str) -> None:
    """Checks the same as :func:`check_split` from a model's configuration alone.

    Does nothing where loading will tell: for a model that is quantized in its files, which is not split, or cannot be
    read.
    """
    trusted = source.trust_remote_code
    try:
        config = read_config(source.model, revision=source.revision, trust_remote_code=trusted)
        if getattr(config, "quantization_config", None) is not None:
            return
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    except (OSError, ValueError):
        return
    check_split(model, size, role=role)


def check_split(model: PreTrainedModel, size: int, *, role: str) -> None:
    """Checks that the layers of a model can be split over ``size`` processes; its weights need not be there.

    Args:
        model: The model; it may be on the meta device.
        size: Number of processes of a group, > 1.
        role: Role of the model in messages.

    Raises:
        UserError: If the architecture has no plan, or one that is not supported here, or its heads or matrices cannot
            be divided by ``size``.
    """
    kind = f"{role} ({type(model).__name__})"
    planned = _planned(model)
    if not planned:
        raise UserError(
            f"tensor parallelism needs an architecture whose layers transformers splits (base_model_tp_plan), and that "
            f"of the {kind} has no plan; {_WAY_OUT}"
        )
    modules = dict(body_of(model).named_modules())
    for name, style in planned.items():
        module = modules.get(name)
        if style not in _LINEAR and style != _SUMMED:
            raise UserError(
                f"tensor parallelism supports plans of linear layers, and that of the {kind} has the style {style!r} "
                f"for {name} (mixtures of experts, latent attention); {_WAY_OUT}"
            )
        if style in _LINEAR and not isinstance(module, nn.Linear):
            raise UserError(
                f"tensor parallelism splits linear layers that are not quantized, and {name} of the {kind} is "
                f"{type(module).__name__}; {_WAY_OUT}"
            )
        if isinstance(module, nn.Linear):
            owner = modules[name.rpartition(".")[0]]
            _check_sizes(module, size, style, f"{name} of the {kind}", getattr(owner, "head_dim", None))
    _check_heads(model, size, planned, kind)
    if unplanned := sorted(_unplanned(model, planned)):
        raise UserError(
            f"tensor parallelism needs a plan for every weight between split layers, and that of the {kind} names none "
            f"for {first_of(unplanned)}; {_WAY_OUT}"
        )


def _check_sizes(layer: nn.Linear, size: int, style: str, name: str, head_size: int | None) -> None:
    width = layer.out_features if style.startswith("colwise") else layer.in_features
    is_of_heads = style == "colwise" and isinstance(head_size, int) and width % head_size == 0
    unit, number = ("heads", width // head_size) if is_of_heads and head_size else ("features", width)
    if number % size:
        raise UserError(
            f"tensor_parallel_size must divide what it splits, got {size} for the {number:,} {unit} of {name}; set one "
            f"that does, or {_WAY_OUT}"
        )


def _check_heads(model: PreTrainedModel, size: int, planned: dict[str, str], kind: str) -> None:
    """Checks the numbers of heads; fused projections do not show them."""
    if not any(style == "colwise" and re.search("attn|attention", name) for name, style in planned.items()):
        return
    config = model.config.get_text_config()
    for setting in ("num_attention_heads", "num_key_value_heads"):
        number = getattr(config, setting, None)
        if isinstance(number, int) and number % size:
            raise UserError(
                f"tensor_parallel_size must divide the heads of a model, got {size} for {setting}={number} of the "
                f"{kind}; set one that does, or {_WAY_OUT}"
            )


def _planned(model: PreTrainedModel) -> dict[str, str]:
    """Names of the modules and weights of the body that the architecture's plan is for, with their styles."""
    plan = getattr(model.config.get_text_config(), "base_model_tp_plan", None) or {}
    body = body_of(model)
    names = [name for name, _ in body.named_modules()] + [name for name, _ in body.named_parameters()]
    styles = ((name, plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))) for name in names)
    return {name: style for name, style in styles if style is not None}


def _unplanned(model: PreTrainedModel, planned: dict[str, str]) -> Iterator[str]:
    """Names of weights beside layers with split outputs that have no plan: their gradients would be partial."""
    parameters = [name for name, _ in body_of(model).named_parameters()]
    for owner in {name.rpartition(".")[0] for name, style in planned.items() if style == "colwise"}:
        for name in parameters:
            module = name.rpartition(".")[0]
            if name.startswith(f"{owner}.") and name not in planned and module not in planned:
                yield name


def split(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Splits a model's layers over the processes of ``mesh``, in place; all of them hold the same whole model before.

    The model moves to the device of the mesh, and is run on a short input before and after.

    Args:
        model: A model that passes :func:`check_split`, not sharded yet; it may have got a LoRA since.
        mesh: The processes of the group, in one dimension.

    Raises:
        UserError: If the split model has other hidden states.
    """
    expected = _states(model)
    modules = dict(body_of(model).named_modules())
    for name, style in _planned(model).items():
        if style == _SUMMED:
            _sum_gradients(modules[name], mesh.get_group())
        else:
            for layer in _layers_to_split(modules[name], style):
                parallelize_module(layer, mesh, _LINEAR[style](), src_data_rank=None)
    model.to(mesh.device_type)
    found = _states(model).to(expected.device)
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if not difference <= relative_tolerance(model.dtype):
        raise UserError(
            f"a model must have the same hidden states when its layers are split, but those of {type(model).__name__} "
            f"differ by {difference:.4g} of the largest (allowed {relative_tolerance(model.dtype):.2g}); {_WAY_OUT}"
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
def _states(model: PreTrainedModel) -> Tensor:
    size = model.config.get_text_config().vocab_size
    ids = torch.arange(_NUM_CHECKED_TOKENS, device=model.get_input_embeddings().weight.device)[None] % size
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
