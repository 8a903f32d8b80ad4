"""Adds an adapter to a student, saves it without the frozen weights, and merges it into them.

PEFT's layers are inserted in place: the model keeps its class, and its body, head and layers stay where the training
step, sharding and compilation expect them.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtoken_pl.models.adapter_targets import find_targets
from xtoken_pl.models.completeness import check_adapter_keys
from xtoken_pl.models.frozen_adapters import check_peft
from xtoken_pl.models.loading import check_quantization, load_causal_lm
from xtoken_pl.models.quantized_files import is_quantized
from xtoken_pl.specs import LoRA, Student
from xtoken_pl.utilities.errors import UserError


def check_adapter(source: Student) -> None:
    """Checks that a student's adapter can be built, from the model's configuration alone.

    Raises:
        UserError: If the adapter needs a library that is not installed, or its target modules are not linear layers of
            the student below its head.
    """
    if source.adapter is None:
        return
    check_quantization(source.quantization, role="student")
    model = _without_weights(source)
    linear = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    add_adapter(model, source.adapter)
    alone = [name for name in model.peft_config["default"].target_parameters or () if name.endswith(".weight")]
    if source.quantization is not None and (quantized := linear & {name.removesuffix(".weight") for name in alone}):
        raise UserError(
            "the adapter of a quantized student must lie on layers that PEFT does not take for experts, but it does "
            f"{min(quantized)!r} and {len(quantized) - 1} more; leave out quantization, or name other layers as "
            "adapter.target_modules"
        )


def add_adapter(model: PreTrainedModel, adapter: LoRA) -> None:
    """Wraps the target modules of ``model`` in new adapter layers, in place, and freezes all other weights.

    The adapter is in float32 at least, regardless of the model's dtype: half precision would lose small updates.

    Raises:
        UserError: If PEFT is not installed, or a target module is not a linear layer of the model below its head.
    """
    check_peft(role="student")
    from peft import LoraConfig

    targets = find_targets(model, adapter)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets.layers,
        target_parameters=targets.parameters or None,
        task_type="CAUSAL_LM",
    )
    model.add_adapter(config)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))


def keep_adapter_only(model: PreTrainedModel) -> None:
    """Excludes the frozen weights from ``model.state_dict()``, also if ``model`` is part of another module."""
    kept = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def drop_frozen(_: nn.Module, state: dict[str, Any], prefix: str, __: object) -> None:
        for name in [name for name in state if name.startswith(prefix) and name.removeprefix(prefix) not in kept]:
            del state[name]

    model.register_state_dict_post_hook(drop_frozen)


def save_adapter(folder: Path, source: Student, weights: dict[str, Tensor]) -> None:
    """Writes an adapter in PEFT's format, for ``peft.PeftModel.from_pretrained(base, folder)``.

    Args:
        folder: Existing directory to write to.
        source: Student whose ``model`` and ``revision`` are recorded as the base model.
        weights: Adapter weights by name.

    Raises:
        UserError: If the weights are not those of the student's adapter.
    """
    assert source.adapter is not None
    model = _without_weights(source)
    add_adapter(model, source.adapter)
    check_adapter_keys(model, weights)
    config: Any = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = source.model, source.revision
    model.save_pretrained(folder, state_dict=weights)


def merge_adapter(source: Student, weights: dict[str, Tensor]) -> PreTrainedModel:
    """Reloads the student's frozen weights and merges the adapter into them, as a plain model on the CPU.

    Weights that were quantized in training are first quantized and dequantized, since the adapter was trained on the
    result.

    Args:
        source: The student.
        weights: Adapter weights by name.

    Raises:
        UserError: If the frozen weights cannot be loaded, or they were quantized and bitsandbytes is not installed, or
            ``weights`` are not those of the student's adapter.
    """
    from peft import PeftModel

    base: Any = load_causal_lm(source, role="student")
    if is_quantized(base):
        base = base.dequantize()
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(Path(folder), source, weights)
        merged = PeftModel.from_pretrained(base, folder).merge_and_unload()
    return cast(PreTrainedModel, merged)


def _without_weights(source: Student) -> PreTrainedModel:
    plain = replace(source, weights="random", adapter=None, quantization=None)
    with torch.device("meta"):
        return load_causal_lm(plain, role="student")
