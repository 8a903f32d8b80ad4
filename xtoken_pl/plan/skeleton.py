"""Models without memory, to count parameters and replay passes on any machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from xtoken_pl.models.quantized_files import check_use, may_stay_quantized
from xtoken_pl.models.sharding import layers
from xtoken_pl.models.text_model import read_config
from xtoken_pl.plan.bare_model import BareModel, build
from xtoken_pl.plan.stored_weights import StoredWeights
from xtoken_pl.specs import ModelSource, Student, Teacher
from xtoken_pl.tokenization import load_tokenizer
from xtoken_pl.utilities.errors import UserError


@dataclass(frozen=True)
class Skeleton:
    """A causal language model of fake tensors, which have shapes and dtypes but no values.

    Attributes:
        bare: The model and what is known of its weights.
    """

    bare: BareModel

    @classmethod
    def from_source(cls, source: ModelSource, *, role: str, dtype: torch.dtype | None = None) -> Skeleton:
        """Builds a model from its ``config.json`` alone, with an adapter if it has one.

        Args:
            source: Specification of the model.
            role: ``student`` or ``teacher 'NAME'``, for messages.
            dtype: Dtype that ``trainer.precision`` converts the weights to; None keeps the dtype of ``source``.

        Raises:
            UserError: If the configuration cannot be read, the plan does not know the size of the weights, or those of
                a student stay quantized and it has no adapter.
        """
        given = None if source.dtype == "auto" else cast(torch.dtype, getattr(torch, source.dtype))
        try:
            bare = build(
                source.model,
                source.revision,
                source.trust_remote_code,
                given,
                dtype,
                source.attn_implementation,
                source.adapter if isinstance(source, Student) else None,
                source.adapter if isinstance(source, Teacher) else None,
                None if isinstance(source, Student) and source.weights == "random" else may_stay_quantized(source),
                source.quantization if isinstance(source, Student | Teacher) else None,
            )
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(
                f"the model of the {role} must be a directory or a hub id with the config.json of a causal language "
                f"model; {source.model!r} could not be read. Check the path or the id. Reason: {error}"
            ) from error
        settings = getattr(bare.model.config, "quantization_config", None)
        if bare.stored is not None and settings is not None:
            check_use(source, settings, is_kept=bare.stored.is_kept, role=role)
        return cls(bare)

    @property
    def model(self) -> PreTrainedModel:
        """The model, its weights in the dtype that they have in training."""
        return self.bare.model

    @property
    def mode(self) -> FakeTensorMode:
        """Fake tensor mode in which the model runs."""
        return self.bare.mode

    @property
    def stored(self) -> StoredWeights | None:
        """Form of the weights if layers are quantized, in the checkpoint or while they are loaded."""
        return self.bare.stored

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
        return bool(self.bare.adapter)

    @property
    def adapter_bytes(self) -> int:
        """Size of the adapter."""
        return sum(parameter.nbytes for parameter in self.bare.adapter)

    @property
    def num_adapter_parameters(self) -> int:
        """Number of the adapter's parameters."""
        return sum(parameter.numel() for parameter in self.bare.adapter)

    @property
    def trained(self) -> tuple[nn.Parameter, ...]:
        """Parameters that a student trains: all that its class does, or those of the adapter."""
        return self.bare.trained

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
        adapter = {id(parameter) for parameter in self.bare.adapter}
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
