"""The student as a plain specification; its weights are loaded when training starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xtoken_pl.specs.lora import LoRA
from xtoken_pl.specs.model_source import ModelSource, Quantization
from xtoken_pl.utilities.errors import UserError


@dataclass(kw_only=True)
class Student(ModelSource):
    """The model that learns.

    Attributes:
        weights: ``pretrained`` loads them; ``random`` builds the model from its configuration, under the run's seed.
        activation_checkpointing: Keep only the inputs of every layer for the backward pass, and run the layer again
            there: less memory, about a third more of the student's time.
        adapter: Train low-rank updates of the layers, and nothing else; checkpoints hold the adapter alone. None
            trains all weights.
        quantization: Load the layers below the adapter in 8 or 4 bits (NF4) with bitsandbytes (QLoRA); embedding, head
            and normalizations keep their ``dtype``.

    Raises:
        UserError: If an adapter is to be put on random weights, or a quantized student has none.
    """

    weights: Literal["pretrained", "random"] = "pretrained"
    activation_checkpointing: bool = False
    adapter: LoRA | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.adapter is not None and self.weights == "random":
            raise UserError(
                "an adapter leaves the weights below it as they are, and got weights='random'; use pretrained weights, "
                "or leave the adapter out"
            )
        if self.quantization is not None and self.adapter is None:
            raise UserError(
                f"quantized weights cannot be trained, and got quantization={self.quantization!r} of a student without "
                "an adapter; give it one (adapter: {rank: 16}), or leave quantization out"
            )
