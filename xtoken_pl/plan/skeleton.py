"""Models without memory: their parameters are counted, and their passes replayed, on any machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from xtoken_pl.models.sharding import layers
from xtoken_pl.teacher import ModelSource

#: transformers looks for a library where the name of an attention contains "flash".
_FLASH = "xtoken_pl_plan"


def _flash(
    _: nn.Module, query: Tensor, key: Tensor, value: Tensor, *__: object, **options: object
) -> tuple[Tensor, None]:
    """What FlashAttention keeps for the backward pass: query, key, value (not repeated), output; no mask."""
    scale = cast(float | None, options.get("scaling"))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


@dataclass(frozen=True)
class Skeleton:
    """A causal language model of fake tensors: it knows its shapes and types, and holds no numbers.

    Attributes:
        model: With the dtype that its weights have in training.
        mode: In which it computes.
    """

    model: PreTrainedModel
    mode: FakeTensorMode

    @classmethod
    def of(cls, source: ModelSource, *, role: str, dtype: torch.dtype | None = None) -> Skeleton:
        """From ``config.json`` alone.

        Args:
            role: What the model is, for messages.
            dtype: What ``trainer.precision`` converts the weights to; None keeps that of ``source``.

        Raises:
            ValueError: If there is no such model.
        """
        given = None if source.dtype == "auto" else cast(torch.dtype, getattr(torch, source.dtype))
        attention = source.attn_implementation
        try:
            return _build(source.model, source.revision, source.trust_remote_code, dtype or given, attention)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the model of the {role} must be a folder or a hub id with the config.json of a causal language "
                f"model; {source.model!r} could not be read. Check the path or the id. Reason: {error}"
            ) from error

    @property
    def dtype(self) -> torch.dtype:
        """Of most weights."""
        return cast(torch.dtype, self.model.dtype)

    @property
    def num_parameters(self) -> int:
        """Tied ones count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def parameter_bytes(self) -> int:
        r""":math:`\sum_p |p| \cdot \text{itemsize}(p)`, tied parameters once; gradients are as large."""
        return _bytes(self.model)

    @property
    def weight_bytes(self) -> int:
        """Parameters and buffers."""
        return self.parameter_bytes + sum(buffer.nbytes for buffer in self.model.buffers())

    @property
    def head(self) -> Tensor:
        """``[V, H]``, with the rows that the model has, those beyond the tokenizer included."""
        return cast(nn.Linear, self.model.get_output_embeddings()).weight

    @property
    def has_tied_head(self) -> bool:
        """Whether the head is the input embedding."""
        return self.head is cast(nn.Embedding, self.model.get_input_embeddings()).weight

    @property
    def largest_layer_bytes(self) -> int:
        """Of the weights of the largest layer; sharding gathers them one by one."""
        return max(_bytes(layer) for layer in layers(self.model))

    @property
    def root_bytes(self) -> int:
        """Of the weights outside the layers: embedding, last normalization, head."""
        return _bytes(self.model) - sum(_bytes(layer) for layer in layers(self.model))

    @property
    def linear_layers(self) -> list[nn.Linear]:
        """Those that quantization replaces: all but the head."""
        head = self.model.get_output_embeddings()
        return [part for part in self.model.modules() if isinstance(part, nn.Linear) and part is not head]


def vocabulary_size(source: ModelSource) -> int | None:
    """Rows of a model's head, by its configuration; None if that is not within reach."""
    try:
        config = AutoConfig.from_pretrained(
            source.model, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except (OSError, ValueError):
        return None
    return cast(int, config.get_text_config().vocab_size)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


@lru_cache(maxsize=16)
def _build(
    name: str, revision: str | None, trusted: bool, dtype: torch.dtype | None, attention: str | None
) -> Skeleton:
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trusted)
    options: dict[str, object] = {"dtype": dtype or config.dtype or torch.float32, "trust_remote_code": trusted}
    if attention is not None:
        is_flash = "flash" in attention  # which need not be installed here
        options["attn_implementation"] = _FLASH if is_flash else attention
    AttentionInterface.register(_FLASH, _flash)
    mode = FakeTensorMode()
    with mode:
        return Skeleton(AutoModelForCausalLM.from_config(config, **options), mode)
