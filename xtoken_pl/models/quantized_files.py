"""Checkpoints whose files are quantized: which of them can be used, and whether their layers stay quantized.

Layers are dequantized if transformers can do so: always for students, and for teachers unless a GPU kernel runs them
quantized.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import is_kernels_available

from xtoken_pl.models.completeness import incomplete
from xtoken_pl.specs import ModelSource, Quantization, Student, Teacher
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import first_of, reason_of

#: Formats for which transformers has layers that multiply quantized weights with kernels from the package `kernels`.
_WITH_KERNELS = {"fp8", "mxfp8", "mxfp4"}
_BITSANDBYTES = "bitsandbytes"


@dataclass(frozen=True)
class QuantizedFiles:
    """How files that are quantized are loaded.

    Attributes:
        method: Name of the format, as in config.json.
        is_kept: Whether the layers stay quantized; otherwise they are dequantized while they are loaded.
        block: Height and width of the blocks that share a scale, if config.json gives them.
    """

    method: str
    is_kept: bool
    block: tuple[int, int] | None

    def options(self, config: PreTrainedConfig, device: torch.device | str) -> dict[str, Any]:
        """Options of ``from_pretrained``; ``config`` is that of the model."""
        if self.is_kept:
            return {"config": config, "device_map": {"": str(device)}}
        dequantized = deepcopy(config)
        dequantized.quantization_config = {**config.quantization_config, "dequantize": True}
        return {"config": dequantized}


def quantized_files(
    config: PreTrainedConfig, source: ModelSource, *, role: str, device: torch.device | str = "cpu"
) -> QuantizedFiles | None:
    """Decides from the configuration of a model how its files are loaded; None if they are not quantized.

    Args:
        config: Configuration of the model that is loaded.
        source: Specification of the model.
        role: Role of the model in messages.
        device: Device on which the model will run.

    Raises:
        UserError: If transformers cannot load the format on this machine, ``source.quantization`` is not that of the
            files, or the layers stay quantized where they cannot: in a student that trains them, or one whose format
            passes no gradient, or with ``cpu_offload``.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    method = method_of(settings)
    _check_option(source, settings, method, role=role)
    may_stay = torch.device(device).type != "cpu" and may_stay_quantized(source)
    is_kept = _is_kept(settings, method, source, may_stay=may_stay, role=role)
    if is_kept:
        _check_kept(method, source, role=role)
    block = settings.get("weight_block_size")
    return QuantizedFiles(method, is_kept, tuple(block) if block else None)


def may_stay_quantized(source: ModelSource) -> bool:
    """Whether a model of this role, placed as it is, can use a GPU's kernels for quantized weights."""
    return isinstance(source, Teacher) and not source.cpu_offload


def stays_quantized(method: str, *, may_stay: bool) -> bool:
    """Whether layers in a format stay quantized; the packages that load it need not be installed.

    They do if transformers cannot dequantize them, or if the package `kernels` is here and has kernels for the format.

    Args:
        method: Name of the format.
        may_stay: Whether the model could use the kernels, see :func:`may_stay_quantized`; for that it needs a GPU.
    """
    if may_stay and method in _WITH_KERNELS and is_kernels_available():
        return True
    known = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    return known is None or "dequantize" not in inspect.signature(known.__init__).parameters


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether layers of a loaded model are quantized, by its files or by ``quantization``."""
    return getattr(model.config, "quantization_config", None) is not None


def without_quantization(config: PreTrainedConfig) -> PreTrainedConfig:
    """Returns the configuration of the same model with weights that are not quantized."""
    if getattr(config, "quantization_config", None) is None:
        return config
    config = deepcopy(config)
    del config.quantization_config
    return config


def convert_others(model: PreTrainedModel) -> None:
    """Converts the weights that are not quantized to the dtype that was asked for.

    transformers leaves them in that of the files where it loads others from several tensors.
    """
    dtype = model.config.dtype
    kept = model._get_dtype_plan(dtype)  # those that stay in float32
    for name, module in model.named_modules():
        weights = dict(module.named_parameters(recurse=False))
        if any(not weight.is_floating_point() or weight.element_size() < 2 for weight in weights.values()):
            continue  # its scales and its bias belong to the quantized layer
        for part, weight in weights.items():
            if not any(fnmatch(f"{name}.{part}", f"*{pattern}*") for pattern in kept):
                weight.data = weight.data.to(dtype)


def check_scales(folder: Path, files: QuantizedFiles, *, role: str) -> None:
    """Checks that layers in 8-bit floating point have scales, and that transformers reads these as they are meant.

    It takes a missing scale for 1. Where the last block of a layer is smaller than the others, it stretches the scales
    evenly over the layer while it dequantizes.

    Args:
        folder: Directory of the model's files, or of a copy from the hub.
        files: How they are loaded.
        role: Role of the model in messages.

    Raises:
        UserError: If scales are missing or would be misread; the message names the first layers.
    """
    scales: dict[str, list[int]] = {}
    stored: dict[str, list[int]] = {}
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, it is no mapping
                layer, tensor = name.rpartition(".")[0], tensors.get_slice(name)
                if "scale" in name:
                    scales[layer] = tensor.get_shape()
                elif tensor.get_dtype().startswith("F8"):
                    stored[layer] = tensor.get_shape()
    if missing := stored.keys() - scales.keys():
        raise incomplete({f"the scale of {layer}" for layer in missing}, files=str(folder), role=role)
    if files.is_kept or files.block is None:
        return
    cut = [layer for layer, shape in stored.items() if _has_smaller_block(shape[-2:], scales[layer][-2:], files.block)]
    if cut:
        height, width = files.block
        raise UserError(
            f"layers of the {role} whose size is no multiple of a block of {height} x {width} numbers cannot be "
            f"dequantized with transformers, and {len(cut)} of {str(folder)!r} are such: {first_of(cut)}; give a "
            "checkpoint that is not quantized"
        )


def _has_smaller_block(shape: list[int], scales: list[int], block: tuple[int, int]) -> bool:
    return any(
        size % height and number > 1 and number == -(-size // height)
        for size, number, height in zip(shape, scales, block, strict=False)
    )


def report_quantized(model: PreTrainedModel, files: QuantizedFiles, source: ModelSource, *, role: str) -> None:
    """Says in the log what became of quantized files, and how much memory the model takes."""
    tensors = chain(model.parameters(), model.buffers())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e9
    dtype = str(model.config.dtype).removeprefix("torch.")
    became = "stay quantized" if files.is_kept else f"were dequantized to {dtype} while they were loaded"
    rank_zero_info(f"{role}: the {files.method} weights of {source.model!r} {became}; the model takes {size:.3g} GB")


def method_of(settings: Mapping[str, Any]) -> str:
    """Name of the format that a ``quantization_config`` describes."""
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return _BITSANDBYTES
    return str(settings.get("quant_method"))


def _is_kept(settings: Mapping[str, Any], method: str, source: ModelSource, *, may_stay: bool, role: str) -> bool:
    """Asks transformers whether it can load the format, and whether the layers stay quantized."""
    try:
        quantizer = AutoHfQuantizer.from_config(deepcopy(dict(settings)), pre_quantized=True)
        used: Any = quantizer.quantization_config
        if not stays_quantized(method, may_stay=may_stay):
            used.dequantize = True
        quantizer.validate_environment(device_map=None, weights_only=True)
    except (ImportError, ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        served = ", or run the teacher on a server (`server`)" if isinstance(source, Teacher) else ""
        raise UserError(
            f"the files of the {role} must be in a format that transformers can load on this machine, and those of "
            f"{source.model!r}, quantized by {method}, are not; install what is missing, or give a checkpoint that is "
            f"not quantized{served}. Reason: {reason_of(error)}"
        ) from None
    return not getattr(used, "dequantize", False)  # transformers may have decided to do so


def check_use(source: ModelSource, settings: Mapping[str, Any], *, is_kept: bool, role: str) -> None:
    """Checks that quantized files can be used as specified.

    Args:
        source: Specification of the model.
        settings: The ``quantization_config`` of its files.
        is_kept: Whether the layers stay quantized.
        role: Role of the model in messages.

    Raises:
        UserError: If ``source.quantization`` is not that of the files, or the layers stay quantized where they cannot:
            in a student that trains them, or one whose format passes no gradient, or with ``cpu_offload``.
    """
    method = method_of(settings)
    _check_option(source, settings, method, role=role)
    if is_kept:
        _check_kept(method, source, role=role)


def _check_option(source: ModelSource, settings: Mapping[str, Any], method: str, *, role: str) -> None:
    bits: Quantization | None = source.quantization if isinstance(source, Student | Teacher) else None
    if bits is not None and not (method == _BITSANDBYTES and settings.get(f"load_in_{bits}")):
        raise UserError(
            f"quantization of the {role} must be that of its files, got {bits!r}, and those of {source.model!r} are "
            f"quantized otherwise ({method}); leave quantization out, or give a model that is not quantized"
        )


def _check_kept(method: str, source: ModelSource, *, role: str) -> None:
    if isinstance(source, Student) and source.adapter is None:
        raise UserError(
            "a quantized student needs an adapter, since quantized weights cannot be trained, and those of "
            f"{source.model!r} are quantized ({method}); give it one (adapter: {{rank: 16}}), or give a model that is "
            "not quantized"
        )
    if isinstance(source, Student) and method != _BITSANDBYTES:
        raise UserError(
            f"an adapter must lie on weights that pass a gradient, and those of {source.model!r}, quantized by "
            f"{method}, are used for teachers only; give a student that is not quantized, or is quantized by "
            f"{_BITSANDBYTES} or in a format that is dequantized (fp8, mxfp4, compressed-tensors)"
        )
    if isinstance(source, Teacher) and source.cpu_offload:
        raise UserError(
            f"cpu_offload of the {role} must be off, since its files are quantized ({method}) and quantized weights "
            "stay on their device; leave it out, or give a model that is not quantized"
        )
