"""Builds causal language models without values, from configurations alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from xtoken_pl.models.adapters import add_adapter
from xtoken_pl.specs import LoRA, Quantization

#: Must not contain "flash", or transformers requires the FlashAttention library.
_FLASH = "xtoken_pl_plan"


@dataclass(frozen=True, kw_only=True)
class ModelKey:
    """What determines a model without values.

    Attributes:
        base: Directory or hub id of the model, without an adapter.
        revision: Branch, tag or commit of a hub id.
        trusted: Whether to run code that comes with the model.
        given: Dtype of the weights; None takes that of the configuration.
        converted: Dtype to which all parameters are converted; None keeps each one's.
        attention: Implementation of attention; None lets transformers choose.
        new_adapter: Adapter that is trained.
        adapter: Directory or hub id of a PEFT adapter that is loaded.
        adapter_revision: Branch, tag or commit of a hub id.
        may_stay_quantized: Whether weights of a quantized checkpoint need not be dequantized if a GPU has kernels for
            them; None if the weights are not read.
        quantization: Quantization of weights that are not quantized in the files.
    """

    base: str
    revision: str | None
    trusted: bool
    given: torch.dtype | None
    converted: torch.dtype | None
    attention: str | None
    new_adapter: LoRA | None
    adapter: str | None
    adapter_revision: str | None
    may_stay_quantized: bool | None
    quantization: Quantization | None


def bare_model(config: PreTrainedConfig, key: ModelKey) -> PreTrainedModel:
    """Builds the model of a configuration on the meta device, without an adapter."""
    options: dict[str, object] = {"dtype": key.converted or key.given or config.dtype or torch.float32}
    options["trust_remote_code"] = key.trusted
    if key.attention is not None:  # "flash" works without the FlashAttention library
        options["attn_implementation"] = _FLASH if "flash" in key.attention else key.attention
    AttentionInterface.register(_FLASH, _flash)
    with torch.device("meta"):  # PEFT moves its layers, which does not work with fake tensors
        return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, **options))


def add_adapters(model: PreTrainedModel, key: ModelKey) -> None:
    """Adds the layers of the adapters to a model on the meta device; those that are loaded in the model's dtype."""
    with torch.device("meta"):
        if key.new_adapter is not None:
            add_adapter(model, key.new_adapter)
        if key.adapter is None:
            return
        from peft import PeftConfig

        before, dtype = {id(weight) for weight in model.parameters()}, model.dtype
        model.add_adapter(PeftConfig.from_pretrained(key.adapter, revision=key.adapter_revision))
        for weight in model.parameters():
            if id(weight) not in before:
                weight.data = weight.data.to(dtype)


def replace_tensors(model: nn.Module, dtype: torch.dtype | None) -> dict[int, nn.Parameter]:
    """Replaces all meta tensors by those of the current mode, which are fake.

    Args:
        model: The model.
        dtype: Dtype of the parameters; None keeps each one's.

    Returns:
        The new parameters by the ids of the old ones.
    """
    new: dict[int, nn.Parameter] = {}
    for part in model.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None and id(tensor) not in new:
                empty = torch.empty(tensor.shape, dtype=dtype or tensor.dtype)
                new[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            if tensor is not None:
                part._parameters[name] = new[id(tensor)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return new


def _flash(
    _: nn.Module, query: Tensor, key: Tensor, value: Tensor, *__: object, **options: object
) -> tuple[Tensor, None]:
    """Saves what FlashAttention does for the backward pass: query, key, value (not repeated), output; no mask."""
    scale = cast(float | None, options.get("scaling"))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None
