"""Adapters that are loaded onto frozen models: which of them can share a model, and the switch between them."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import cached_file, find_adapter_config_file

from xtoken_pl.models.completeness import check_keys, key_table_replaced
from xtoken_pl.utilities.errors import UserError

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


def check_peft(*, role: str) -> None:
    """Checks that the library for adapters is installed.

    Args:
        role: Role of the model that has an adapter in messages.

    Raises:
        UserError: If PEFT is not installed.
    """
    if find_spec("peft") is None:
        raise UserError(
            f"the adapter of the {role} needs PEFT, which is not installed; install it "
            "(pip install 'xtoken_pl[adapters]'), or give a model without an adapter"
        )


def load_adapter(
    model: PreTrainedModel,
    files: str,
    *,
    role: str,
    name: str = "default",
    revision: str | None = None,
    warns: bool = True,
) -> None:
    """Loads a PEFT adapter onto a model, and makes it the one that is used.

    Args:
        model: Model with the adapter's base weights. It may have other such adapters, of other names.
        files: Directory or hub id of the adapter.
        role: Role of the model in messages.
        name: Name of the adapter within the model.
        revision: Branch, tag or commit of a hub id.
        warns: Whether to report weights that the model has no use for.

    Raises:
        UserError: If there is no adapter, PEFT is not installed, or weights are missing or have other shapes.
    """
    try:
        is_found = find_adapter_config_file(files, revision=revision) is not None
    except (OSError, ValueError):  # neither a directory nor the name of a repository
        is_found = False
    if not is_found:
        raise UserError(
            f"the adapter of the {role} must be a directory or a hub id with an adapter_config.json, got {files!r}; "
            "check the path (relative paths start at the working directory)"
        )
    check_peft(role=role)
    options = {"adapter_kwargs": {"revision": revision}, "ignore_mismatched_sizes": True, "adapter_name": name}
    with key_table_replaced(files=files, role=role):
        found = model.load_adapter(files, **options).to_dict()
    others = model.peft_config.keys() - {name}  # transformers misses their weights, too
    missing = [key for key in found["missing_keys"] if others.isdisjoint(key.split("."))]
    check_keys(model, {**found, "missing_keys": missing}, files=files, role=role, warns=warns)


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
