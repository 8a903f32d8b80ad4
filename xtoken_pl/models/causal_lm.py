"""Loads a causal language model, runs it up to its head, and checks that head and packing are supported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from xtoken_pl.models.head import Head
from xtoken_pl.specs import ModelSource, Quantization, Student, Teacher
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import reason_of

# B batch, T tokens, H hidden size

#: Name of the method of a sharded model that gathers its weights and computes hidden states; see ``sharding.shard``.
GATHERING_STATES = "gathering_hidden_states"

_NUM_CHECKED_TOKENS = 8
_LARGE_LOGIT = 1000.0
#: Largest difference between the head path and the model's own logits, relative to the largest logit.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


def load_causal_lm(source: ModelSource, *, role: str, device: torch.device | str = "cpu") -> PreTrainedModel:
    """Loads the model of ``source``, in evaluation mode.

    A :class:`Student` with ``weights="random"`` is built from its configuration alone.

    Args:
        source: Specification of the model.
        role: Role of the model in messages: ``student``, or ``teacher 'NAME'``.
        device: Device on which weights are quantized; others are loaded on the CPU.

    Raises:
        UserError: If the model cannot be loaded, or it is to be quantized and bitsandbytes is not installed.
    """
    hub: dict[str, Any] = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    options: dict[str, Any] = {"dtype": source.dtype if source.dtype == "auto" else getattr(torch, source.dtype)}
    if source.attn_implementation is not None:
        options["attn_implementation"] = source.attn_implementation
    if isinstance(source, Student | Teacher) and source.quantization is not None:
        check_quantization(source.quantization, role=role)
        options |= _quantized(source.quantization, options["dtype"], device)
    try:
        if isinstance(source, Student) and source.weights == "random":
            config = AutoConfig.from_pretrained(source.model, **hub)
            if options["dtype"] == "auto":
                options["dtype"] = config.dtype or torch.float32
            options["trust_remote_code"] = source.trust_remote_code
            model = AutoModelForCausalLM.from_config(config, **options)
        else:
            model = AutoModelForCausalLM.from_pretrained(source.model, **hub, **options)
    except SafetensorError as error:
        raise UserError(
            f"the weights of the {role} must be whole, but those of {source.model!r} cannot be read ({error}); copy "
            "or download the model again"
        ) from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers has no exception class of its own for a model that does not fit its files
        raise UserError(
            f"the model of the {role} must be a directory or a hub id of a causal language model; {source.model!r} "
            "could not be loaded. Check the path (relative paths start at the working directory), the id, the model's "
            f"files or the options. Reason: {reason_of(error)}"
        ) from error
    _keep_layout_of_quantized(model)
    return cast(PreTrainedModel, model).eval()


def check_quantization(bits: Quantization | None, *, role: str) -> None:
    """Checks that the library for a quantization is installed.

    Raises:
        UserError: If bitsandbytes is needed and not installed.
    """
    if bits is not None and find_spec("bitsandbytes") is None:
        raise UserError(
            f"quantization={bits!r} of the {role} needs bitsandbytes, which is not installed; install it "
            "(pip install bitsandbytes), or leave quantization out"
        )


def _quantized(bits: Quantization, dtype: torch.dtype | str, device: torch.device | str) -> dict[str, Any]:
    config = BitsAndBytesConfig(
        load_in_8bit=bits == "8bit",
        load_in_4bit=bits == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
    )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def _keep_layout_of_quantized(model: nn.Module) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    It would do so in the first pass in evaluation mode. Packed layers have no backward pass, round their products to
    bfloat16, and must be at least 64 wide.
    """
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            cast(Any, layer).support_avx512bf16_for_cpu = False


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
    """Loads a model, and checks that its head, cut to ``vocabulary``, reproduces the model's logits.

    Args:
        source: Specification of the model.
        vocabulary: Vocabulary of the model's tokenizer.
        role: Role of the model in messages.
        device: Device on which weights are quantized.
        separates: Whether to check that packed documents do not affect each other.

    Raises:
        UserError: If the model cannot be loaded, its head cannot be used, or packed documents affect each other.
    """
    model = load_causal_lm(source, role=role, device=device)
    head = Head.from_model(model, vocabulary)
    check_head(model, head, role=role)
    if separates:
        check_separation(model, head, role=role)
    return LoadedModel(model, head)


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
    if position_ids is None:
        output = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return cast(Tensor, output.last_hidden_state)
    # Without a mask, transformers separates documents where positions restart; FlashAttention does so in one row only.
    shape = input_ids.shape
    if is_flash_attention_requested(model.config):
        input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
    output = model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False)
    return cast(Tensor, output.last_hidden_state).view(*shape, -1)


def _random_ids(head: Head, num_rows: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(0)
    shape = (num_rows, _NUM_CHECKED_TOKENS)
    ids = torch.randint(head.vocabulary_size, shape, generator=generator, device="cpu")
    return ids.to(head.layer.weight.device)


@torch.no_grad()
def check_head(model: PreTrainedModel, head: Head, *, role: str) -> None:
    """Checks on a short input that the head applied to the hidden states gives the model's own logits.

    Some architectures transform their logits after the head (soft-capping, a logit scale); blockwise evaluation would
    compute wrong logits for them. The states are scaled so that the logits are large: a soft cap hardly changes small
    ones, such as those of random weights.

    Raises:
        UserError: If they differ; the message gives the largest difference.
    """
    input_ids = _random_ids(head, 1)
    mask = torch.ones_like(input_ids)
    hidden = hidden_states(model, input_ids, mask)[0]
    factor = _LARGE_LOGIT / head.layer(hidden).abs().max().clamp_min(torch.finfo(hidden.dtype).tiny)
    hook = head.layer.register_forward_pre_hook(lambda _, arguments: (arguments[0] * factor,))
    try:
        own = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[0, :, : head.vocabulary_size]
    finally:
        hook.remove()
    ours, expected = head.log_probs(hidden * factor), head.normalize(own)
    both_zero = expected.isneginf() & ours.isneginf()  # probabilities of ids that no token has
    difference = (expected - ours).masked_fill(both_zero, 0.0).abs().max().item()
    if math.isnan(difference):
        raise UserError(
            f"a model's logits must not be NaN, but on a short input those of the {role} ({type(model).__name__}) are; "
            f"check its weights, and its dtype ({model.dtype}; float16 overflows, use bfloat16 or float32)"
        )
    bound = _TOLERANCE[model.dtype] * _LARGE_LOGIT
    if not difference <= bound:
        raise UserError(
            f"a model's logits must be its head applied to its last hidden states, but for the {role} "
            f"({type(model).__name__}) the log-probabilities differ by {difference:.4g} (allowed {bound:.2g}, at "
            f"logits up to {_LARGE_LOGIT:g}). Models that transform their logits after the head (soft-capping, logit "
            "scale) are not supported; use another one"
        )


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
