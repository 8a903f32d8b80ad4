"""The student as a plain specification; its weights are loaded when training starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from xtoken_pl.specs.lora import LoRA
from xtoken_pl.specs.model_source import ModelSource, Quantization
from xtoken_pl.utilities.errors import UserError


@dataclass(kw_only=True)
class Student(ModelSource):
    """The model that learns.

    Attributes:
        weights: ``pretrained`` loads them; ``random`` initializes the model from its configuration with the run's seed.
        activation_checkpointing: Whether to store only the input of every layer for the backward pass and to run the
            layer again there: less memory, about a third more of the student's time.
        adapter: Low-rank updates of the layers, the only weights that are then trained and saved in checkpoints. None
            trains all weights.
        quantization: Load the layers below the adapter in 8 or 4 bits (NF4) with bitsandbytes (QLoRA); embedding, head
            and normalization layers keep their ``dtype``.
        router_aux_loss_coef: For a mixture of experts, factor of the load balancing loss that is added to the others
            (:class:`xtoken_pl.models.router_loss.RouterLoss`), >= 0; at 0 the routers learn from the others alone.

    Raises:
        UserError: If a student with an adapter has random weights, a quantized student has no adapter, or
            ``router_aux_loss_coef`` is negative or not finite.
    """

    weights: Literal["pretrained", "random"] = "pretrained"
    activation_checkpointing: bool = False
    adapter: LoRA | None = None
    quantization: Quantization | None = None
    router_aux_loss_coef: float = 0.0

    def __post_init__(self) -> None:
        if self.adapter is not None and self.weights == "random":
            raise UserError(
                "an adapter needs pretrained weights, since those below it are not trained, got weights='random'; use "
                "pretrained weights, or leave the adapter out"
            )
        if self.quantization is not None and self.adapter is None:
            raise UserError(
                f"a quantized student needs an adapter, since quantized weights cannot be trained, got quantization="
                f"{self.quantization!r} without one; give it one (adapter: {{rank: 16}}), or leave quantization out"
            )
        if not 0 <= self.router_aux_loss_coef < math.inf:
            raise UserError(
                f"router_aux_loss_coef must be a finite number >= 0, got {self.router_aux_loss_coef}; 0 adds none"
            )
