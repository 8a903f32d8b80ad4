"""Runs a causal language model up to its head, and checks that head and packing are supported."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from xtoken_pl.models.head import Head
from xtoken_pl.models.loading import load_causal_lm
from xtoken_pl.models.logit_transform import LogitTransform
from xtoken_pl.specs import ModelSource
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

# B batch, T tokens, H hidden size

#: Name of the method of a sharded model that gathers its weights and computes hidden states; see ``sharding.shard``.
GATHERING_STATES = "gathering_hidden_states"

_NUM_CHECKED_TOKENS = 8
#: Largest logit of the short inputs.
_MAGNITUDES = (10.0, 1000.0)
#: Largest difference between the head path and the model's own logits, relative to the largest logit.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


def relative_tolerance(dtype: torch.dtype) -> float:
    """Largest difference between two ways to compute the same states, relative to the largest one."""
    return _TOLERANCE[dtype]


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model and its checked head."""

    model: PreTrainedModel
    head: Head


def load_model(
    source: ModelSource,
    vocabulary: CanonicalVocabulary,
    *,
    role: str,
    device: torch.device | str = "cpu",
    separates: bool = False,
) -> LoadedModel:
    """Loads a model, and finds the transformation with which its head, cut to ``vocabulary``, gives the model's logits.

    Args:
        source: Specification of the model.
        vocabulary: Vocabulary of the model's tokenizer.
        role: Role of the model in messages.
        device: Device on which weights are quantized.
        separates: Whether to check that packed documents do not affect each other.

    Raises:
        UserError: If the model cannot be loaded, its head cannot be used, or packed documents affect each other.
    """
    return check_model(load_causal_lm(source, role=role, device=device), vocabulary, role=role, separates=separates)


def check_model(
    model: PreTrainedModel, vocabulary: CanonicalVocabulary, *, role: str, separates: bool = False
) -> LoadedModel:
    """Checks a model that is loaded as :func:`load_model` does; one with adapters, with the adapter that it uses."""
    head = fit_head(model, Head.from_model(model, vocabulary), role=role)
    if separates:
        check_separation(model, head, role=role)
    return LoadedModel(model, head)


def body_of(model: PreTrainedModel) -> nn.Module:
    """Returns the part of a causal language model that computes the states which its head reads.

    Usually ``model.base_model``. That is the model itself where its class names no such part, as Llama 4's text model:
    then it is the child that holds the input embedding.
    """
    body, embedding = cast(nn.Module, model.base_model), model.get_input_embeddings()
    if body is not model:
        return body
    holders = [child for child in model.children() if embedding is not child and embedding in child.modules()]
    return holders[0] if holders else model


def hidden_states(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """Computes the hidden states that the head is applied to, ``[B, T] -> [B, T, H]``.

    Args:
        model: The model, sharded or not.
        input_ids: ``[B, T]`` token ids.
        attention_mask: ``[B, T]``, 1 for tokens, 0 for padding.
        position_ids: ``[B, T]`` positions in packed documents that do not attend to each other; replaces the mask.
    """
    gathering = getattr(model, GATHERING_STATES, None)
    if gathering is not None:
        return cast(Tensor, gathering(input_ids, attention_mask, position_ids))
    return states_of_body(model, input_ids, attention_mask, position_ids)


def states_of_body(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """Computes the same as :func:`hidden_states` for a model whose weights are gathered."""
    options = {"use_cache": False, "return_dict": True}  # a config.json may say otherwise
    if position_ids is None:
        output = body_of(model)(input_ids=input_ids, attention_mask=attention_mask, **options)
        return cast(Tensor, output.last_hidden_state)
    # Without a mask, transformers separates documents where positions restart; FlashAttention does so in one row only.
    shape = input_ids.shape
    if is_flash_attention_requested(model.config):
        input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
    output = body_of(model)(input_ids=input_ids, position_ids=position_ids, **options)
    return cast(Tensor, output.last_hidden_state).view(*shape, -1)


def _random_ids(head: Head, num_rows: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    shape = (num_rows, _NUM_CHECKED_TOKENS)
    ids = torch.randint(head.vocabulary_size, shape, generator=generator, device="cpu")
    return ids.to(head.layer.weight.device)


@torch.no_grad()
def fit_head(model: PreTrainedModel, head: Head, *, role: str) -> Head:
    """Finds out on a short input what the model does to its logits behind the head.

    Some architectures multiply, divide or soft-cap them, as settings of their configuration say. Of what these allow,
    the first that gives the model's own logits is taken. The states are scaled so that the logits are small, and large:
    a soft cap hardly changes small logits, such as those of random weights, and hides a factor of large ones.

    Returns:
        The head with that transformation.

    Raises:
        UserError: If nothing gives the model's logits; the message gives the smallest difference.
    """
    input_ids = _random_ids(head, 1)
    mask = torch.ones_like(input_ids)
    hidden = hidden_states(model, input_ids, mask)[0]
    largest = head.layer(hidden).abs().max().clamp_min(torch.finfo(hidden.dtype).tiny)
    own = {}
    for magnitude in _MAGNITUDES:
        factor = magnitude / largest
        hook = head.layer.register_forward_pre_hook(lambda _, arguments, factor=factor: (arguments[0] * factor,))
        try:
            output = model(input_ids=input_ids, attention_mask=mask, use_cache=False, return_dict=True)
        finally:
            hook.remove()
        own[factor] = output.logits[0, :, : head.vocabulary_size]
    if any(bool(logits.isnan().any()) for logits in own.values()):
        raise UserError(
            f"a model's logits must not be NaN, but on a short input those of the {role} ({type(model).__name__}) are; "
            f"check its weights, and its dtype ({model.dtype}; float16 overflows, use bfloat16 or float32)"
        )
    least = math.inf  # relative to the largest logit
    for transform in LogitTransform.candidates(model.config):
        candidate = replace(head, transform=transform)
        differences = [
            _relative_difference(candidate.log_probs(hidden * factor), head.normalize(expected), expected)
            for factor, expected in own.items()
        ]
        difference = float(torch.stack(differences).max())  # NaN if one is
        if difference <= _TOLERANCE[model.dtype]:
            return candidate
        least = min(least, difference)  # in this order, NaN is left out
    raise UserError(
        f"a model's logits must be its head applied to its last hidden states, times a factor or with a soft cap that "
        f"its config.json names, but for the {role} ({type(model).__name__}) the log-probabilities differ by "
        f"{least:.4g} of the largest logit (allowed {_TOLERANCE[model.dtype]:.2g}); use another model"
    )


def _relative_difference(ours: Tensor, expected: Tensor, logits: Tensor) -> Tensor:
    """Largest difference of log-probabilities, relative to the largest logit."""
    both_zero = expected.isneginf() & ours.isneginf()  # probabilities of ids that no token has
    difference = (expected - ours).masked_fill(both_zero, 0.0).abs().max()
    return difference / logits[~logits.isinf()].abs().max()


@torch.no_grad()
def check_separation(model: PreTrainedModel, head: Head, *, role: str) -> None:
    """Checks on a short input that packed documents have the same hidden states as each document alone.

    Raises:
        UserError: If they differ, so that documents affect later ones; the message gives the largest difference.
    """
    input_ids = _random_ids(head, 2)
    position_ids = torch.empty_like(input_ids)
    places = [(0, 0, 5), (0, 5, _NUM_CHECKED_TOKENS), (1, 0, 3), (1, 3, _NUM_CHECKED_TOKENS)]  # row, start, end
    for row, start, end in places:
        position_ids[row, start:end] = torch.arange(end - start)
    ways_out = "set data.packing to joined or none"
    try:
        packed = hidden_states(model, input_ids, torch.ones_like(input_ids), position_ids)
        apart = torch.empty_like(packed)
        for row, start, end in places:
            document = input_ids[row : row + 1, start:end]
            apart[row, start:end] = hidden_states(model, document, torch.ones_like(document))[0]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"with data.packing=separate a model must take position_ids, and the {role} ({type(model).__name__}) does "
            f"not; {ways_out}. Reason: {error}"
        ) from error
    difference = ((packed - apart).abs().max() / apart.abs().max()).item()
    bound = _TOLERANCE[model.dtype]
    if not difference <= bound:
        raise UserError(
            f"with data.packing=separate a model must keep the documents of a sequence apart, but the states of the "
            f"{role} ({type(model).__name__}, attention {model.config._attn_implementation}) differ from those of each "
            f"document alone by {difference:.4g} of the largest (allowed {bound:.2g}); {ways_out}, or set its "
            "attn_implementation to sdpa or eager"
        )
