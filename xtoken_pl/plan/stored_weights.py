"""Size on a GPU of quantized weights: of checkpoints, as their config.json describes them, or by an option."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from xtoken_pl.models.quantized_files import method_of, stays_quantized
from xtoken_pl.specs import Quantization
from xtoken_pl.utilities.errors import UserError

_FLOAT, _INT = 4, 4
#: Weights that share a scale in MXFP4, and under bitsandbytes' 4-bit quantization.
_MXFP4_BLOCK, _BLOCK = 32, 64
#: Scales of a block that share one of their own, where scales are quantized, too (bitsandbytes).
_SCALES_BLOCK = 256


@dataclass(frozen=True)
class StoredWeights:
    """Weights that are quantized, in a checkpoint or while they are loaded.

    Attributes:
        method: Format, such as ``fp8`` or ``gptq``.
        num_bytes: Size of all weights and buffers; None where they are dequantized while they are loaded.
        dequantized_layer: Size of the largest weight that is dequantized while its layer runs.
    """

    method: str
    num_bytes: int | None
    dequantized_layer: int = 0

    @property
    def is_kept(self) -> bool:
        """Whether the weights stay quantized."""
        return self.num_bytes is not None


def stored_weights(
    model: PreTrainedModel, config: PreTrainedConfig, *, may_stay: bool | None, quantization: Quantization | None
) -> StoredWeights | None:
    """Reads from a configuration, or from ``quantization``, how weights are quantized; None if they are not.

    Which weights stay quantized: :func:`xtoken_pl.models.quantized_files.stays_quantized`.

    Args:
        model: The model of the configuration, without an adapter.
        config: The configuration.
        may_stay: Whether a model of this role, placed as it is, could use the kernels; None if the files' weights are
            not read.
        quantization: Quantization of weights that are not quantized in the files.

    Raises:
        UserError: If the plan does not know the size of weights in this format.
    """
    settings: Mapping[str, Any] | None = None if may_stay is None else getattr(config, "quantization_config", None)
    if settings is None and quantization is not None:
        settings = {f"load_in_{quantization}": True}
    if settings is None:
        return None
    method = method_of(settings)
    if not stays_quantized(method, may_stay=bool(may_stay)):
        return StoredWeights(method, None)
    if method not in _SIZES:
        raise UserError(
            f"the plan does not know how many bytes the weights of {type(model).__name__} take in the format "
            f"{method!r}, which its config.json names; it counts {', '.join(sorted(_SIZES))}. Plan the same model "
            "without quantization for an upper bound"
        )
    return _SIZES[method](method, model, settings)


def _total(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _fp8(method: str, model: PreTrainedModel, settings: Mapping[str, Any]) -> StoredWeights:
    """One byte a weight, and a scale for each block, in the layers that transformers replaces; fused experts, too."""
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

    given = AUTO_QUANTIZATION_CONFIG_MAPPING[method].from_dict({**settings, "dequantize": False})
    skipped = _skipped(model, settings.get("modules_to_not_convert"))
    with torch.device("meta"):
        quantized = replace_with_fp8_linear(deepcopy(model), skipped, given, pre_quantized=True)
    return StoredWeights(method, _total(quantized))


def _mxfp4(method: str, model: PreTrainedModel, settings: Mapping[str, Any]) -> StoredWeights:
    """Half a byte for a weight of the experts, one for the scale of 32, and biases in float32."""
    skipped = _skipped(model, settings.get("modules_to_not_convert"))
    num_bytes = _total(model)
    for name, weight in model.named_parameters():
        parts = name.split(".")
        if "experts" in parts and should_convert_module(".".join(parts[: parts.index("experts") + 1]), skipped):
            is_bias = weight.dim() < 3
            stored = weight.numel() * _FLOAT if is_bias else weight.numel() // 2 + weight.numel() // _MXFP4_BLOCK
            num_bytes += stored - weight.nbytes
    return StoredWeights(method, num_bytes)


def _bitsandbytes(method: str, model: PreTrainedModel, settings: Mapping[str, Any]) -> StoredWeights:
    """One byte a weight and 4 a row for its scale, or half a byte and 4 for the scale of 64 weights.

    Scales that are quantized, too, have one byte, and 4 for 256 of them.
    """

    def size(rows: int, columns: int) -> float:
        if settings.get("load_in_8bit"):
            return rows * columns + _FLOAT * rows
        scale = 1 + _FLOAT / _SCALES_BLOCK if settings.get("bnb_4bit_use_double_quant") else _FLOAT
        return rows * columns * (0.5 + scale / _BLOCK)

    skipped = _skipped(model, settings.get("llm_int8_skip_modules"))
    return _with_linear_layers(method, model, skipped, size)


def _packed(method: str, model: PreTrainedModel, settings: Mapping[str, Any]) -> StoredWeights:
    r"""GPTQ and AWQ: b bits a weight; for each group a scale of 2 bytes, and a zero of b bits, for every output.

    .. math:: \frac{K N b}{8} + \lceil K / g \rceil N \left(2 + \frac{b}{8}\right)

    for K inputs, N outputs and groups of g inputs; GPTQ has the group of each input, too, :math:`4 K`.
    """
    if any(weight.dim() == 3 and "experts" in name.split(".") for name, weight in model.named_parameters()):
        raise UserError(
            f"the plan does not know how many bytes the fused experts of {type(model).__name__} take in the format "
            f"{method!r}, which its config.json names; plan the same model without quantization for an upper bound"
        )
    bits = int(settings.get("bits") or settings.get("w_bit") or 4)
    given = int(settings.get("group_size") or settings.get("q_group_size") or 128)

    def size(outputs: int, inputs: int) -> float:
        groups = math.ceil(inputs / given) if given > 0 else 1
        indices = _INT * inputs if method == "gptq" else 0
        return inputs * outputs * bits / 8 + groups * outputs * (2 + bits / 8) + indices

    skipped = _skipped(model, settings.get("modules_to_not_convert"), adds_default=True)
    return _with_linear_layers(method, model, skipped, size)


def _with_linear_layers(
    method: str, model: PreTrainedModel, skipped: list[str], size: Callable[[int, int], float]
) -> StoredWeights:
    """Replaces the sizes of linear layers by ``size(outputs, inputs)``; each is dequantized as a whole at most."""
    layers = list(_linear_layers(model, skipped))
    others = _total(model) - sum(weight.nbytes for weight, _, _ in layers)
    num_bytes = others + sum(size(outputs, inputs) for _, outputs, inputs in layers)
    return StoredWeights(method, math.ceil(num_bytes), max((weight.nbytes for weight, _, _ in layers), default=0))


def _linear_layers(model: nn.Module, skipped: list[str]) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Yields the weights of the linear layers that are quantized, with the numbers of their outputs and inputs."""
    for name, layer in model.named_modules():
        if should_convert_module(name, skipped) and (type(layer) is nn.Linear or isinstance(layer, Conv1D)):
            outputs, inputs = layer.weight.shape if type(layer) is nn.Linear else reversed(layer.weight.shape)
            yield layer.weight, outputs, inputs


def _skipped(model: PreTrainedModel, given: list[str] | None, *, adds_default: bool = False) -> list[str]:
    """Patterns of the modules that are not quantized, as transformers finds them: by default the head."""
    kept: Any = HfQuantizer.get_modules_to_not_convert(model, given, model._keep_in_fp32_modules, adds_default)
    return list(kept)


_SIZES: dict[str, Callable[[str, PreTrainedModel, Mapping[str, Any]], StoredWeights]] = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
    "awq": _packed,
    "gptq": _packed,
}
