"""Formats of quantized checkpoints: how layers are stored, and what the stored numbers mean, read one by one.

The readers know nothing of transformers: they take the bytes of a format apart as its definition says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from damaged_models import Weights
from torch import Tensor

#: The values of 4-bit floating point (E2M1), by code.
_E2M1 = [sign * value for sign in (1.0, -1.0) for value in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]
#: Rounding of weights that are multiplied with their scales in float16, the dtype of these.
_HALF = 1e-3
#: AWQ's order of the eight 4-bit numbers in an integer.
_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


@dataclass(frozen=True)
class Format:
    """A format of quantized layers.

    Attributes:
        settings: ``quantization_config`` in config.json.
        store: Stored tensors of a layer, by the end of their names, from its weight.
        read: The weight that stored tensors mean.
        layers: Ends of the names of the weights that are stored in this format.
        package: Package that transformers needs to load the format, beyond the project's own.
        rounding: Largest difference of logits by rounding, relative to the largest logit. In float32 it is 1e-5.
    """

    settings: dict[str, Any]
    store: Callable[[Tensor], Weights]
    read: Callable[[Weights], Tensor]
    layers: tuple[str, ...] = ("_proj.weight",)
    package: str | None = None
    rounding: float = 1e-5

    def stored(self, weights: Weights) -> Weights:
        """All tensors of a checkpoint in this format."""
        result = {}
        for name, weight in weights.items():
            if name.endswith(self.layers):
                stem = name.removesuffix("weight")
                result |= {stem + end: tensor for end, tensor in self.store(weight).items()}
            else:
                result[name] = weight
        return result

    def meant(self, weights: Weights) -> Weights:
        """Weights, in float32, that the tensors of :meth:`stored` stand for."""
        result = {}
        for name, weight in weights.items():
            if name.endswith(self.layers):
                result[name] = self.read(self.store(weight))
            else:
                result[name] = weight.float()
        return result


# Eight bits ------------------------------------------------------------------------------------------------------


def e4m3_value(code: int) -> float:
    """An 8-bit number of one sign bit, four bits of exponent and three of mantissa."""
    sign, exponent, mantissa = -1.0 if code >> 7 else 1.0, code >> 3 & 15, code & 7
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def _read_e4m3(weight: Tensor) -> Tensor:
    codes = weight.view(torch.uint8)
    return torch.tensor([[e4m3_value(code) for code in row] for row in codes.tolist()])


def _scaled_blocks(weight: Tensor, scales: Tensor, height: int, width: int) -> Tensor:
    """Multiplies every block of a matrix by its own scale."""
    result = weight.clone()
    for row, column in product(range(scales.shape[0]), range(scales.shape[1])):
        block = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
        result[block] *= scales[row, column]
    return result


def _store_in_blocks(height: int, width: int, end: str) -> Callable[[Tensor], Weights]:
    def store(weight: Tensor) -> Weights:
        rows, columns = weight.shape  # the last blocks may be smaller
        padded = F.pad(weight.float(), (0, -columns % width, 0, -rows % height))
        blocks = padded.unflatten(0, (-1, height)).unflatten(2, (-1, width))
        scales = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scales[:, None, :, None]).reshape(padded.shape)[:rows, :columns]
        return {"weight": codes.to(torch.float8_e4m3fn), end: scales}

    return store


def fp8(height: int, width: int) -> Format:
    """Blocks of 8-bit floating point with a scale each, as DeepSeek and Qwen publish them."""
    settings = {"quant_method": "fp8", "weight_block_size": [height, width], "activation_scheme": "dynamic"}

    def read(stored: Weights) -> Tensor:
        return _scaled_blocks(_read_e4m3(stored["weight"]), stored["weight_scale_inv"], height, width)

    return Format(settings, _store_in_blocks(height, width, "weight_scale_inv"), read)


def fp8_per_tensor() -> Format:
    """8-bit floating point with one scale for a layer."""

    def store(weight: Tensor) -> Weights:
        scale = weight.float().abs().max() / 448
        return {"weight": (weight.float() / scale).to(torch.float8_e4m3fn), "weight_scale_inv": scale}

    def read(stored: Weights) -> Tensor:
        return _read_e4m3(stored["weight"]) * stored["weight_scale_inv"]

    return Format({"quant_method": "fp8", "activation_scheme": "dynamic"}, store, read)


def compressed_fp8() -> Format:
    """8-bit floating point with a scale for each row, by compressed-tensors."""
    numbers = {"num_bits": 8, "type": "float", "symmetric": True}
    weights = {**numbers, "strategy": "channel", "dynamic": False}
    activations = {**numbers, "strategy": "token", "dynamic": True}

    def store(weight: Tensor) -> Weights:
        return _store_in_blocks(1, weight.shape[1], "weight_scale")(weight)

    def read(stored: Weights) -> Tensor:
        return _read_e4m3(stored["weight"]) * stored["weight_scale"]

    return Format(_compressed("float-quantized", weights, activations), store, read, package="compressed_tensors")


# Four bits -------------------------------------------------------------------------------------------------------


def _packed(numbers: Tensor) -> Tensor:
    """Eight numbers of four bits in an integer of 32, the first one in the lowest bits, ``[..., 8 n] -> [..., n]``."""
    value = (numbers.to(torch.int64).unflatten(-1, (-1, 8)) << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(value >= 2**31, value - 2**32, value).to(torch.int32)


def _unpacked(value: Tensor) -> Tensor:
    return torch.tensor([[number >> 4 * place & 15 for number in row for place in range(8)] for row in value.tolist()])


def _in_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers of -8 to 7 for the weights ``[out, in]``, and their scales ``[out, in / 32]`` in float16."""
    groups = weight.float().unflatten(1, (-1, 32))
    scales = (groups.abs().amax(-1) / 7).half()
    return (groups / scales[..., None]).round().clamp(-8, 7).flatten(1), scales


def _out_of_groups(numbers: Tensor, scales: Tensor) -> Tensor:
    return _scaled_blocks(numbers.float(), scales.float(), 1, 32)


def compressed_int4() -> Format:
    """Groups of 32 whole numbers with a scale each, by compressed-tensors."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}

    def store(weight: Tensor) -> Weights:
        numbers, scales = _in_groups(weight)
        shape = torch.tensor(weight.shape)
        return {"weight_packed": _packed(numbers + 8), "weight_scale": scales, "weight_shape": shape}

    def read(stored: Weights) -> Tensor:
        return _out_of_groups(_unpacked(stored["weight_packed"]) - 8, stored["weight_scale"])

    return Format(
        _compressed("pack-quantized", weights, None), store, read, package="compressed_tensors", rounding=_HALF
    )


def gptq() -> Format:
    """GPTQ: numbers are packed along the inputs, and zeros are stored less one."""
    settings = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True, "checkpoint_format": "gptq"}

    def store(weight: Tensor) -> Weights:
        numbers, scales = _in_groups(weight)
        num_inputs = weight.shape[1]
        return {
            "qweight": _packed(numbers + 8).t(),
            "qzeros": _packed(torch.full((num_inputs // 32, len(weight)), 7)),
            "scales": scales.t(),
            "g_idx": (torch.arange(num_inputs) // 32).int(),
        }

    def read(stored: Weights) -> Tensor:
        zeros = _unpacked(stored["qzeros"]) + 1
        numbers = _unpacked(stored["qweight"].t()) - zeros[stored["g_idx"].long()].t()
        return _out_of_groups(numbers, stored["scales"].t())

    return Format({"quant_method": "gptq", **settings}, store, read, package="gptqmodel", rounding=_HALF)


def awq() -> Format:
    """AWQ: numbers are packed along the outputs, in an order of their own."""
    settings = {"bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}

    def packed(numbers: Tensor) -> Tensor:
        return _packed(numbers.unflatten(-1, (-1, 8))[..., _AWQ_ORDER].flatten(-2))

    def unpacked(value: Tensor) -> Tensor:
        places = [_AWQ_ORDER.index(number) for number in range(8)]
        return _unpacked(value).unflatten(-1, (-1, 8))[..., places].flatten(-2)

    def store(weight: Tensor) -> Weights:
        numbers, scales = _in_groups(weight)
        zeros = packed(torch.full((weight.shape[1] // 32, len(weight)), 8))
        return {"qweight": packed((numbers + 8).t()), "qzeros": zeros, "scales": scales.t()}

    def read(stored: Weights) -> Tensor:
        zeros = unpacked(stored["qzeros"]).repeat_interleave(32, dim=0)
        return _out_of_groups((unpacked(stored["qweight"]) - zeros).t(), stored["scales"].t())

    return Format({"quant_method": "awq", **settings}, store, read, package="gptqmodel", rounding=_HALF)


def _compressed(name: str, weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


class MXFP4:
    """4-bit floating point in blocks of 32 that share a power of two: GPT-OSS's experts ``[experts, in, out]``."""

    rounding = 1e-5
    settings: ClassVar[dict[str, Any]] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
    }
    _experts = ("experts.gate_up_proj", "experts.down_proj")

    def stored(self, weights: Weights) -> Weights:
        """All tensors of a checkpoint; in the files, the inputs of an expert come last."""
        result = {}
        for name, weight in weights.items():
            if not name.endswith(self._experts):
                result[name] = weight
                continue
            blocks = weight.float().transpose(1, 2).unflatten(2, (-1, 32))
            exponents = (blocks.abs().amax(-1) / 6).log2().ceil()
            distances = (blocks / exponents.exp2()[..., None])[..., None] - torch.tensor(_E2M1)
            codes = distances.abs().argmin(-1).to(torch.uint8)
            result[f"{name}_blocks"] = codes[..., 0::2] | codes[..., 1::2] << 4
            result[f"{name}_scales"] = (exponents + 127).to(torch.uint8)
        return result

    def meant(self, weights: Weights) -> Weights:
        """Weights, in float32, that the tensors of :meth:`stored` stand for."""
        stored = self.stored(weights)
        return {
            name: self._read(stored[f"{name}_blocks"], stored[f"{name}_scales"])
            if name.endswith(self._experts)
            else stored[name].float()
            for name in weights
        }

    def _read(self, blocks: Tensor, scales: Tensor) -> Tensor:
        experts = []
        for expert_blocks, expert_scales in zip(blocks.tolist(), scales.tolist(), strict=True):
            rows = []
            for row, exponents in zip(expert_blocks, expert_scales, strict=True):
                numbers = []
                for block, exponent in zip(row, exponents, strict=True):
                    for byte in block:
                        numbers += [_E2M1[code] * 2.0 ** (exponent - 127) for code in (byte & 15, byte >> 4)]
                rows.append(numbers)
            experts.append(torch.tensor(rows).t())
        return torch.stack(experts)
