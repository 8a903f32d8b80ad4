"""Models without memory, to count parameters and replay passes on any machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from xtoken_pl.models.frozen_adapters import check_peft
from xtoken_pl.models.loading import base_model
from xtoken_pl.models.quantized_files import check_use, may_stay_quantized
from xtoken_pl.models.sharding import layers
from xtoken_pl.models.text_model import read_config
from xtoken_pl.plan.bare_model import ModelKey, add_adapters, bare_model, replace_tensors
from xtoken_pl.plan.stored_weights import StoredWeights, stored_weights
from xtoken_pl.specs import ModelSource, Student, Teacher
from xtoken_pl.tokenization import load_tokenizer
from xtoken_pl.utilities.errors import UserError


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A causal language model of fake tensors, which have shapes and dtypes but no values.

    Attributes:
        model: The model, its weights in the dtype that they have in training.
        mode: Fake tensor mode in which it runs.
        trained: Parameters that a student would train: those of a new adapter, or all that its class trains.
        adapter: Parameters of an adapter, which the model below it does not have.
        stored: Form of the weights if layers are quantized, in the checkpoint or while they are loaded.
    """

    model: PreTrainedModel
    mode: FakeTensorMode
    trained: tuple[nn.Parameter, ...]
    adapter: tuple[nn.Parameter, ...]
    stored: StoredWeights | None

    @classmethod
    def from_source(cls, source: ModelSource, *, role: str, dtype: torch.dtype | None = None) -> Skeleton:
        """Builds a model from its ``config.json`` alone, with an adapter if it has one; cached.

        Args:
            source: Specification of the model.
            role: ``student`` or ``teacher 'NAME'``, for messages.
            dtype: Dtype that ``trainer.precision`` converts the weights to; None keeps the dtype of ``source``.

        Raises:
            UserError: If the configuration cannot be read, the plan does not know the size of the weights, those of a
                student stay quantized and it has no adapter, or ``fit`` would refuse an adapter.
        """
        try:
            skeleton = _build(_key_of(source, role=role, dtype=dtype))
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the model of the {role} must be a directory or a hub id with the config.json of a causal language "
                f"model; {source.model!r} could not be read. Check the path or the id. Reason: {error}"
            ) from error
        settings = getattr(skeleton.model.config, "quantization_config", None)
        if skeleton.stored is not None and settings is not None:
            check_use(source, settings, is_kept=skeleton.stored.is_kept, role=role)
        return skeleton

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of most weights."""
        return cast(torch.dtype, self.model.dtype)

    @property
    def num_parameters(self) -> int:
        """Number of parameters; tied parameters count once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def has_adapter(self) -> bool:
        """Whether the model has an adapter."""
        return bool(self.adapter)

    @property
    def adapter_bytes(self) -> int:
        """Size of the adapter."""
        return sum(parameter.nbytes for parameter in self.adapter)

    @property
    def num_adapter_parameters(self) -> int:
        """Number of the adapter's parameters."""
        return sum(parameter.numel() for parameter in self.adapter)

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
    def layer_bytes(self) -> list[int]:
        """Size of the weights of each layer; sharding gathers one layer at a time."""
        return [_bytes(layer) for layer in layers(self.model)]

    @property
    def adapter_layer_bytes(self) -> list[int]:
        """Size of the adapter in each layer."""
        adapter = {id(parameter) for parameter in self.adapter}
        return [_bytes(layer, adapter) for layer in layers(self.model)]

    @property
    def root_bytes(self) -> int:
        """Size of the weights outside the layers: embedding, last normalization, head."""
        return _bytes(self.model) - sum(self.layer_bytes)

    @property
    def largest_trained_bytes(self) -> int:
        """Size of the trained parameters in the largest layer or outside the layers, whichever is larger."""
        trained = {id(parameter) for parameter in self.trained}
        of_layers = [_bytes(layer, trained) for layer in layers(self.model)]
        return max(*of_layers, self.trained_bytes - sum(of_layers))


def _key_of(source: ModelSource, *, role: str, dtype: torch.dtype | None) -> ModelKey:
    is_random = isinstance(source, Student) and source.weights == "random"
    base, revision = (source.model, source.revision) if is_random else base_model(source, role=role)
    adapter, adapter_revision = (None, None) if base == source.model else (source.model, source.revision)
    if isinstance(source, Teacher) and source.adapter is not None:
        check_peft(role=role)
        adapter = source.adapter
    return ModelKey(
        base=base,
        revision=revision,
        trusted=source.trust_remote_code,
        given=None if source.dtype == "auto" else cast(torch.dtype, getattr(torch, source.dtype)),
        converted=dtype,
        attention=source.attn_implementation,
        new_adapter=source.adapter if isinstance(source, Student) else None,
        adapter=adapter,
        adapter_revision=adapter_revision,
        may_stay_quantized=None if is_random else may_stay_quantized(source),
        quantization=source.quantization if isinstance(source, Student | Teacher) else None,
    )


@lru_cache(maxsize=16)
def _build(key: ModelKey) -> Skeleton:
    config = read_config(key.base, revision=key.revision, trust_remote_code=key.trusted)
    model = bare_model(config, key)
    stored = stored_weights(model, config, may_stay=key.may_stay_quantized, quantization=key.quantization)
    below = {id(weight) for weight in model.parameters()}
    add_adapters(model, key)
    weights = list(model.parameters())
    mode = FakeTensorMode()
    with mode:
        new = replace_tensors(model, key.converted)
    trained = tuple(new[id(weight)] for weight in weights if weight.requires_grad)
    added = tuple(new[id(weight)] for weight in weights if id(weight) not in below)
    return Skeleton(model, mode, trained, added, stored)


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


def _bytes(module: nn.Module, among: set[int] | None = None) -> int:
    """Size of a module's parameters; of those with the ids ``among`` if given."""
    return sum(parameter.nbytes for parameter in module.parameters() if among is None or id(parameter) in among)
