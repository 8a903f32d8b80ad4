"""Switches a frozen model between the adapters of the teachers that share it."""

from __future__ import annotations

from typing import Any

from torch import nn


def use_adapter(model: nn.Module, name: str | None) -> None:
    """Makes ``name`` the adapter that the model uses, or none; its weights stay frozen.

    Does nothing for a model without adapters.
    """
    if not getattr(model, "peft_config", None):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    layer: Any
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer | ModulesToSaveWrapper):
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name, inference_mode=True)
