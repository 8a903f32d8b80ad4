"""Models without memory, to count parameters and replay passes on any machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from xtoken_pl.models.adapters import add_adapter
from xtoken_pl.models.sharding import layers
from xtoken_pl.models.text_model import read_config
from xtoken_pl.specs import LoRA, ModelSource, Student
from xtoken_pl.tokenization import load_tokenizer
from xtoken_pl.utilities.errors import UserError

#: Must not contain "flash", or transformers requires the FlashAttention library.
_FLASH = "xtoken_pl_plan"
#: Part of the names of an adapter's layers.
_ADAPTER = ".lora_"


def _flash(
    _: nn.Module, query: Tensor, key: Tensor, value: Tensor, *__: object, **options: object
) -> tuple[Tensor, None]:
    """Saves what FlashAttention does for the backward pass: query, key, value (not repeated), output; no mask."""
    scale = cast(float | None, options.get("scaling"))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


@dataclass(frozen=True)
class Skeleton:
    """A causal language model of fake tensors, which have shapes and dtypes but no values.

    Attributes:
        model: The model, its weights in the dtype that they have in training.
        mode: Fake tensor mode in which it runs.
        has_adapter: Whether only an adapter is trained.
    """

    model: PreTrainedModel
    mode: FakeTensorMode
    has_adapter: bool

    @classmethod
    def from_source(cls, source: ModelSource, *, role: str, dtype: torch.dtype | None = None) -> Skeleton:
        """Builds a model from its ``config.json`` alone.

        Args:
            source: Specification of the model.
            role: ``student`` or ``teacher 'NAME'``, for messages.
            dtype: Dtype that ``trainer.precision`` converts the weights to; None keeps the dtype of ``source``.

        Raises:
            UserError: If the configuration cannot be read.
        """
        given = None if source.dtype == "auto" else cast(torch.dtype, getattr(torch, source.dtype))
        attention = source.attn_implementation
        adapter = source.adapter if isinstance(source, Student) else None
        try:
            return _build(source.model, source.revision, source.trust_remote_code, given, dtype, attention, adapter)
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(
                f"the model of the {role} must be a directory or a hub id with the config.json of a causal language "
                f"model; {source.model!r} could not be read. Check the path or the id. Reason: {error}"
            ) from error

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of most weights."""
        return cast(torch.dtype, self.model.dtype)

    @property
    def num_parameters(self) -> int:
        """Number of parameters; tied parameters count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def trained(self) -> list[nn.Parameter]:
        """Trained parameters: all, or those of the adapter."""
        return self._trained_in(self.model)

    @property
    def trained_bytes(self) -> int:
        """Size of the trained parameters, and of their gradients."""
        return sum(parameter.nbytes for parameter in self.trained)

    @property
    def weight_bytes(self) -> int:
        r"""Size :math:`\sum_p |p| \cdot \text{itemsize}(p)` of parameters and buffers; tied parameters count once."""
        return _bytes(self.model) + sum(buffer.nbytes for buffer in self.model.buffers())

    @property
    def head(self) -> Tensor:
        """``[V, H]`` weight of the head, including rows beyond the tokenizer's vocabulary."""
        return cast(nn.Linear, self.model.get_output_embeddings()).weight

    @property
    def has_tied_head(self) -> bool:
        """Whether the head is the input embedding."""
        return self.head is cast(nn.Embedding, self.model.get_input_embeddings()).weight

    @property
    def largest_layer_bytes(self) -> int:
        """Size of the largest layer's weights; sharding gathers one layer at a time."""
        return max(_bytes(layer) for layer in layers(self.model))

    @property
    def root_bytes(self) -> int:
        """Size of the weights outside the layers: embedding, last normalization, head."""
        return _bytes(self.model) - sum(_bytes(layer) for layer in layers(self.model))

    @property
    def largest_trained_bytes(self) -> int:
        """Size of the trained parameters in the largest layer or outside the layers, whichever is larger."""
        of_layers = [sum(parameter.nbytes for parameter in self._trained_in(layer)) for layer in layers(self.model)]
        return max(*of_layers, self.trained_bytes - sum(of_layers))

    @property
    def linear_layers(self) -> list[nn.Linear]:
        """Linear layers that quantization replaces: all but the head and those of an adapter."""
        head = self.model.get_output_embeddings()
        parts = self.model.named_modules()
        return [p for name, p in parts if isinstance(p, nn.Linear) and p is not head and _ADAPTER not in name]

    def _trained_in(self, module: nn.Module) -> list[nn.Parameter]:
        parameters = module.named_parameters()
        return [parameter for name, parameter in parameters if not self.has_adapter or _ADAPTER in name]


def vocabulary_size(source: ModelSource) -> int | None:
    """Number of rows of a model's head according to its configuration, or else of its tokens; None if neither is here.

    Of a cached or served teacher, the tokenizer may be all that is here.
    """
    try:
        config = read_config(source.model, revision=source.revision, trust_remote_code=source.trust_remote_code)
    except (OSError, ValueError):
        return _num_tokens(source)
    return cast(int, config.vocab_size)


def _num_tokens(source: ModelSource) -> int | None:
    try:
        tokenizer = load_tokenizer(source.model, revision=source.revision, trust_remote_code=source.trust_remote_code)
    except UserError:
        return None
    return len(tokenizer)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


@lru_cache(maxsize=16)
def _build(
    name: str,
    revision: str | None,
    trusted: bool,
    given: torch.dtype | None,
    converted: torch.dtype | None,
    attention: str | None,
    adapter: LoRA | None,
) -> Skeleton:
    config = read_config(name, revision=revision, trust_remote_code=trusted)
    options: dict[str, object] = {"dtype": converted or given or config.dtype or torch.float32}
    options["trust_remote_code"] = trusted
    if attention is not None:  # "flash" works without the FlashAttention library
        options["attn_implementation"] = _FLASH if "flash" in attention else attention
    AttentionInterface.register(_FLASH, _flash)
    mode = FakeTensorMode()
    if adapter is None:
        with mode:
            return Skeleton(AutoModelForCausalLM.from_config(config, **options), mode, has_adapter=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **options)
        add_adapter(model, adapter)
    with mode:
        _replace_tensors(model, converted)
    return Skeleton(model, mode, has_adapter=True)


def _replace_tensors(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Replaces all meta tensors by fake ones; PEFT moves its layers, which does not work with fake tensors.

    Args:
        model: The model.
        dtype: Dtype of the parameters; None keeps each one's.
    """
    new: dict[int, Tensor] = {}
    for part in model.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                empty = torch.empty(tensor.shape, dtype=dtype or tensor.dtype)
                part._parameters[name] = cast(nn.Parameter, new.setdefault(id(tensor), nn.Parameter(empty)))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
