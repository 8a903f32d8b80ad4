"""Builds causal language models of fake tensors, from configurations alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from xtoken_pl.models.adapters import add_adapter
from xtoken_pl.models.text_model import read_config
from xtoken_pl.plan.stored_weights import StoredWeights, stored_weights
from xtoken_pl.specs import LoRA, Quantization
from xtoken_pl.utilities.errors import UserError

#: Must not contain "flash", or transformers requires the FlashAttention library.
_FLASH = "xtoken_pl_plan"


@dataclass(frozen=True, eq=False)
class BareModel:
    """A model without values, and what is known of its weights.

    Attributes:
        model: The model, its weights in the dtype that they have in training.
        mode: Fake tensor mode in which it runs.
        trained: Parameters that a student would train: those of a new adapter, or all that its class trains.
        adapter: Parameters of an adapter, which the model below it does not have.
        stored: Form of the weights if layers are quantized, in the checkpoint or while they are loaded.
    """

    model: PreTrainedModel
    mode: FakeTensorMode
    trained: tuple[nn.Parameter, ...]
    adapter: tuple[nn.Parameter, ...]
    stored: StoredWeights | None


@lru_cache(maxsize=16)
def build(
    name: str,
    revision: str | None,
    trusted: bool,
    given: torch.dtype | None,
    converted: torch.dtype | None,
    attention: str | None,
    new_adapter: LoRA | None,
    adapter: str | None,
    may_stay_quantized: bool | None,
    quantization: Quantization | None,
) -> BareModel:
    """Builds a model; cached.

    Args:
        name: Directory or hub id of the model, or of a PEFT adapter that names its base model.
        revision: Of a hub id.
        trusted: Whether to run code that comes with the model.
        given: Dtype of the weights; None takes that of the configuration.
        converted: Dtype to which all parameters are converted; None keeps each one's.
        attention: Implementation of attention; None lets transformers choose.
        new_adapter: Adapter that is trained.
        adapter: Directory or hub id of a PEFT adapter that is loaded.
        may_stay_quantized: Whether weights of a quantized checkpoint need not be dequantized if a GPU has kernels for
            them; None if the weights are not read.
        quantization: Quantization of weights that are not quantized in the files.

    Raises:
        OSError, ValueError: If a configuration cannot be read.
        UserError: If the plan does not know the size of quantized weights, or PEFT is not installed.
    """
    try:
        config = read_config(name, revision=revision, trust_remote_code=trusted)
    except (OSError, ValueError):
        found = find_adapter_config_file(name, revision=revision)
        if found is None:
            raise
        adapter, adapter_revision = name, revision
        config = _config_below(found, trusted=trusted)
    else:
        adapter_revision = None
    options: dict[str, object] = {"dtype": converted or given or config.dtype or torch.float32}
    options["trust_remote_code"] = trusted
    if attention is not None:  # "flash" works without the FlashAttention library
        options["attn_implementation"] = _FLASH if "flash" in attention else attention
    AttentionInterface.register(_FLASH, _flash)
    with torch.device("meta"):  # PEFT moves its layers, which does not work with fake tensors
        model = AutoModelForCausalLM.from_config(config, **options)
        stored = stored_weights(model, config, may_stay=may_stay_quantized, quantization=quantization)
        base = {id(weight) for weight in model.parameters()}
        if new_adapter is not None:
            add_adapter(model, new_adapter)
        if adapter is not None:
            _add_saved_adapter(model, adapter, adapter_revision)
    added = [weight for weight in model.parameters() if id(weight) not in base]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    mode = FakeTensorMode()
    with mode:
        new = _replace_tensors(model, converted)
    return BareModel(
        model, mode, tuple(new[id(weight)] for weight in trained), tuple(new[id(weight)] for weight in added), stored
    )


def _config_below(adapter_config: str, *, trusted: bool) -> PreTrainedConfig:
    """Configuration of the model that an adapter is for."""
    settings = json.loads(Path(adapter_config).read_text(encoding="utf-8"))
    return read_config(
        settings["base_model_name_or_path"], revision=settings.get("revision"), trust_remote_code=trusted
    )


def _add_saved_adapter(model: PreTrainedModel, files: str, revision: str | None) -> None:
    """Adds the layers of a PEFT adapter, in the dtype of the model, as transformers loads them."""
    if find_spec("peft") is None:
        raise UserError(
            f"the PEFT adapter {files!r} needs PEFT, which is not installed; install it "
            "(pip install 'xtoken_pl[adapters]'), or give a model into which the adapter is merged"
        )
    from peft import PeftConfig

    before, dtype = {id(weight) for weight in model.parameters()}, model.dtype
    model.add_adapter(PeftConfig.from_pretrained(files, revision=revision))
    for weight in model.parameters():
        if id(weight) not in before:
            weight.data = weight.data.to(dtype)


def _replace_tensors(model: nn.Module, dtype: torch.dtype | None) -> dict[int, nn.Parameter]:
    """Replaces all meta tensors by fake ones.

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
