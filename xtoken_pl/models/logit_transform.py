"""Elementwise functions that some models apply to the logits of their head: a factor, a soft cap, or both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

#: Settings of configurations that are a factor of the logits, or of the states that the head reads. Whether they
#: multiply (Cohere, Falcon H1, HyperCLOVA X) or divide (Granite, MiniCPM) is not in their names.
_FACTORS = (
    *("logit_scale", "logits_scaling", "lm_head_multiplier"),
    "dim_model_base",  # of MiniCPM's own code, per hidden size
)
#: Settings that are a soft cap (Gemma 2 to 4, NanoChat, Beam; RecurrentGemma).
_CAPS = ("final_logit_softcapping", "logits_soft_cap")


@dataclass(frozen=True)
class LogitTransform:
    r"""Elementwise function of a head's logits y.

    .. math:: z = s\,y \quad\text{or, with a cap,}\quad z = c \tanh(s\,y / c)

    Attributes:
        scale: Factor s, not 0.
        cap: Soft cap c > 0; None for none.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Transforms logits in float32 at least, ``[N, V] -> [N, V]``."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.cap is None:
            return logits * self.scale
        return torch.tanh(logits * (self.scale / self.cap)) * self.cap

    def slope(self, logits: Tensor) -> Tensor:
        r"""The derivative :math:`dz / dy = s (1 - \tanh^2(s\,y / c))`, ``[N, V] -> [N, V]``, in float32 at least."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.cap is None:
            return torch.full_like(logits, self.scale)
        return torch.tanh(logits * (self.scale / self.cap)).square_().neg_().add_(1).mul_(self.scale)

    @classmethod
    def candidates(cls, config: PreTrainedConfig) -> Iterator[LogitTransform | None]:
        """Lists what a model of this configuration may do to its logits; what is set there comes first, None last."""
        text = config.get_text_config()
        settings: dict[str, Any] = {name: getattr(text, name, None) for name in (*_FACTORS, *_CAPS)}
        if settings["dim_model_base"]:
            settings["dim_model_base"] /= text.hidden_size
        factors = [float(settings[name]) for name in _FACTORS if settings[name]]
        caps = [float(settings[name]) for name in _CAPS if settings[name]]
        scales = [scale for factor in factors for scale in (factor, 1 / factor)]
        for scale, cap in product([*scales, 1.0], [*caps, None]):
            yield None if (scale, cap) == (1.0, None) else cls(scale, cap)
