"""Decides which models can be split over processes, from the plan that transformers has of their architecture."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel
from transformers import AutoModelForCausalLM, PreTrainedModel

from xtoken_pl.models.causal_lm import body_of
from xtoken_pl.models.loading import base_model
from xtoken_pl.models.quantized_files import may_stay_quantized, method_of, stays_quantized, without_quantization
from xtoken_pl.models.text_model import read_config
from xtoken_pl.specs import ModelSource
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import first_of

WAY_OUT = "set tensor_parallel_size: 1, as --trainer.strategy fsdp2 does, which shards every model"
#: Style whose weights every process holds whole, behind a split layer: each has the gradient of its part alone.
SUMMED = "replicated_with_grad_allreduce"
#: Style of a linear layer in a plan -> what torch makes of it.
LINEAR: dict[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    **dict.fromkeys(("colwise_gather_output", "colwise_rep"), partial(ColwiseParallel, output_layouts=Replicate())),
    **dict.fromkeys(("rowwise_split_input", "rowwise_rep"), partial(RowwiseParallel, input_layouts=Replicate())),
}


def check_tensor_parallel_source(source: ModelSource, size: int, *, role: str, on_gpu: bool) -> None:
    """Checks the same as :func:`check_can_be_split` from a model's configuration alone.

    Does nothing for a model that stays quantized, which is not split, and for one that cannot be read: loading reports
    the reason, and the loaded model is checked again.

    Args:
        source: Specification of the model.
        size: Number of processes of a group, > 1.
        role: Role of the model in messages.
        on_gpu: Whether the model runs on GPUs, whose kernels may keep its files quantized.

    Raises:
        UserError: As :func:`check_can_be_split`, or if ``source.model`` holds a PEFT adapter.
    """
    trusted = source.trust_remote_code
    try:
        base, revision = base_model(source, role=role)
        if base != source.model:
            raise UserError(
                f"tensor parallelism splits models without adapters, and {source.model!r} of the {role} holds one "
                f"(adapter_config.json); merge it into its base model (merge_and_unload), or {WAY_OUT}"
            )
        config = read_config(base, revision=revision, trust_remote_code=trusted)
        settings = getattr(config, "quantization_config", None)
        may_stay = on_gpu and may_stay_quantized(source)
        if settings is not None and stays_quantized(method_of(settings), may_stay=may_stay):
            return
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(without_quantization(config), trust_remote_code=trusted)
    except UserError:
        raise
    except (OSError, ValueError):
        return
    check_can_be_split(model, size, role=role)


def check_can_be_split(model: PreTrainedModel, size: int, *, role: str) -> None:
    """Checks that the layers of a model can be split over ``size`` processes; its weights need not be there.

    Args:
        model: The model; it may be on the meta device.
        size: Number of processes of a group, > 1.
        role: Role of the model in messages.

    Raises:
        UserError: If the model has an adapter, or the architecture has no plan, or one that is not supported here, or
            its heads or matrices cannot be divided by ``size``.
    """
    kind = f"{role} ({type(model).__name__})"
    if getattr(model, "peft_config", None):
        raise UserError(f"tensor parallelism splits models without adapters, and the {kind} has one; {WAY_OUT}")
    planned = planned_styles(model)
    if not planned:
        raise UserError(
            f"tensor parallelism needs an architecture whose layers transformers splits (base_model_tp_plan), and that "
            f"of the {kind} has no plan; {WAY_OUT}"
        )
    modules = dict(body_of(model).named_modules())
    for name, style in planned.items():
        module = modules.get(name)
        if module is None or (style not in LINEAR and style != SUMMED):  # None: a weight of its own
            raise UserError(
                f"tensor parallelism supports plans of linear layers, and that of the {kind} has the style {style!r} "
                f"for {name} (mixtures of experts, latent attention); {WAY_OUT}"
            )
        if style in LINEAR and not isinstance(module, nn.Linear):
            raise UserError(
                f"tensor parallelism splits linear layers that are not quantized, and {name} of the {kind} is "
                f"{type(module).__name__}; {WAY_OUT}"
            )
        if isinstance(module, nn.Linear):
            owner = modules[name.rpartition(".")[0]]
            _check_sizes(module, size, style, f"{name} of the {kind}", getattr(owner, "head_dim", None))
    _check_heads(model, size, planned, kind)
    if unplanned := sorted(_unplanned(model, planned)):
        raise UserError(
            f"tensor parallelism needs a plan for every weight between split layers, and that of the {kind} names none "
            f"for {first_of(unplanned)}; {WAY_OUT}"
        )


def _check_sizes(layer: nn.Linear, size: int, style: str, name: str, head_size: int | None) -> None:
    width = layer.out_features if style.startswith("colwise") else layer.in_features
    is_of_heads = style == "colwise" and isinstance(head_size, int) and width % head_size == 0
    unit, number = ("heads", width // head_size) if is_of_heads and head_size else ("features", width)
    if number % size:
        raise UserError(
            f"tensor_parallel_size must divide what it splits, got {size} for the {number:,} {unit} of {name}; set one "
            f"that does, or {WAY_OUT}"
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
                f"{kind}; set one that does, or {WAY_OUT}"
            )


def planned_styles(model: PreTrainedModel) -> dict[str, str]:
    """Returns the modules and weights of a model's body that its architecture's plan is for, by name, with styles."""
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
