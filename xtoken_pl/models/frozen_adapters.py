"""Adapters of frozen models: which can share a model, and the switch between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers.utils import cached_file, find_adapter_config_file

#: Settings of a LoRA that may have any value: with them it still only adds to the outputs of layers while in use.
_FREE = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version", "inference_mode"),
    # without effect, as long as the settings that would use them are off
    *("megatron_core", "qalora_group_size", "runtime_config", "loftq_config", "eva_config", "corda_config"),
    "lora_ga_config",
}
#: Settings that may have some values; all others must be off (false, empty or None).
_ALLOWED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),  # others write the biases of the model's own layers
    "init_lora_weights": (True, False, "gaussian"),  # others, such as PiSSA, rewrite the model's own weights at loading
}
_WEIGHTS = "adapter_model.safetensors"


def only_adds(adapter: str) -> bool:
    """Whether it is certain that a PEFT adapter leaves the weights of its model as they are, in use or not.

    Teachers may share a model only then: another adapter would change those that run after it.

    Args:
        adapter: Directory or hub id; where there is no adapter, loading will report it.
    """
    try:
        file = find_adapter_config_file(adapter)
        weights = cached_file(adapter, _WEIGHTS)
    except (OSError, ValueError):
        return False
    if file is None or weights is None:
        return False
    settings: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    allowed = all(
        value in _ALLOWED[name] if name in _ALLOWED else name in _FREE or not value for name, value in settings.items()
    )
    with safe_open(weights, framework="pt") as tensors:
        names = tensors.keys()  # among them may be those of the embedding
    return allowed and settings.get("peft_type") == "LORA" and all(".lora_" in name for name in names)


def use_adapter(model: nn.Module, name: str | None) -> None:
    """Makes ``name`` the adapter that the model uses, or none; its weights stay frozen.

    Modules that an adapter replaces are left alone: such a model has one adapter, which is always in use.
    """
    if not getattr(model, "peft_config", None):
        return  # without adapters; PEFT may be missing
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer: Any
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name, inference_mode=True)
