"""Adapters of frozen models: which can share a model, and the switch between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import find_adapter_config_file

#: Settings of an adapter that put whole modules, or rows of the embedding, in place of the model's.
_REPLACEMENTS = ("modules_to_save", "trainable_token_indices")


def replaces_weights(adapter: str) -> bool:
    """Whether a PEFT adapter replaces weights of its model, such as the head, beside adding to others.

    Such a model cannot be shared: the losses read the head after another teacher's pass.

    Args:
        adapter: Directory or hub id; where there is no adapter, loading will report it.
    """
    try:
        file = find_adapter_config_file(adapter)
    except (OSError, ValueError):
        return False
    settings = {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    return any(settings.get(name) for name in _REPLACEMENTS)


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
