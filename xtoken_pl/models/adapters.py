"""Puts an adapter into a student, keeps it apart from the frozen weights, and merges it into them.

The layers are PEFT's, set into the model in place: it stays the class that it is, with its body, its head and its
layers where the training step, sharding and compilation look for them.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from xtoken_pl.models.causal_lm import check_quantization, load_causal_lm
from xtoken_pl.specs import LoRA, Student
from xtoken_pl.specs.lora import ALL_LINEAR
from xtoken_pl.utilities.errors import UserError


def check_adapter(source: Student) -> None:
    """Refuses an adapter that cannot be made; reads the model's configuration only.

    Raises:
        UserError: If it needs a library that is not installed.
        UserError: If its target modules are not layers of the student, or are its embedding or head.
    """
    if source.adapter is None:
        return
    check_quantization(source.quantization, role="student")
    add_adapter(_without_weights(source), source.adapter)


def add_adapter(model: PreTrainedModel, adapter: LoRA) -> None:
    """Puts new adapter layers around the target modules of ``model``, in place, and freezes all other weights.

    The adapter is in float32 at least, whatever the model is in: half precision would round small updates away.

    Raises:
        UserError: If PEFT is not installed.
        UserError: If a target module is no layer of the model, or is its embedding or head.
    """
    if find_spec("peft") is None:
        raise UserError(
            "the student's adapter needs PEFT, which is not installed; install it (pip install 'xtoken_pl[adapters]'), "
            "or leave the adapter out"
        )
    model.add_adapter(_peft_config(adapter, _targets(model, adapter)))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))


def keep_adapter_only(model: PreTrainedModel) -> None:
    """Leaves the frozen weights out of what ``model.state_dict()`` gives, here or as a part of another module."""
    kept = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    def drop_frozen(_: nn.Module, state: dict[str, Any], prefix: str, __: object) -> None:
        for name in [name for name in state if name.startswith(prefix) and name.removeprefix(prefix) not in kept]:
            del state[name]

    model.register_state_dict_post_hook(drop_frozen)


def save_adapter(folder: Path, source: Student, weights: dict[str, Tensor]) -> None:
    """Writes an adapter as PEFT reads it: ``peft.PeftModel.from_pretrained(base, folder)``.

    Args:
        folder: That exists.
        source: The student; its ``model`` and ``revision`` are named as the base.
        weights: By name, those of the adapter.
    """
    assert source.adapter is not None
    model = _without_weights(source)
    add_adapter(model, source.adapter)
    config: Any = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = source.model, source.revision
    model.save_pretrained(folder, state_dict=weights)


def merge_adapter(source: Student, weights: dict[str, Tensor]) -> PreTrainedModel:
    """The student as a plain model, on the CPU: its frozen weights are loaded again, and the adapter is added to them.

    Quantized ones are quantized and dequantized first: the adapter has learned what quantization left of them.

    Args:
        source: The student.
        weights: By name, those of the adapter.

    Raises:
        UserError: If the frozen weights cannot be loaded.
        UserError: If they were quantized, and bitsandbytes is not installed.
    """
    from peft import PeftModel

    base: Any = load_causal_lm(source, role="student")
    if source.quantization is not None:
        base = base.dequantize()
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(Path(folder), source, weights)
        merged = PeftModel.from_pretrained(base, folder).merge_and_unload()
    return cast(PreTrainedModel, merged)


def _peft_config(adapter: LoRA, targets: list[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def _targets(model: PreTrainedModel, adapter: LoRA) -> list[str]:
    """The full names of the layers that ``adapter`` goes into."""
    head = model.get_output_embeddings()
    modules = dict(model.named_modules())
    is_linear = {name: isinstance(part, nn.Linear | Conv1D) and part is not head for name, part in modules.items()}
    given = adapter.target_modules
    if given == ALL_LINEAR:
        return [name for name in modules if is_linear[name]]
    found: dict[str, None] = {}
    for target in [given] if isinstance(given, str) else given:
        if isinstance(given, str):
            matching = [name for name in modules if re.fullmatch(target, name)]
        else:
            matching = [name for name in modules if f".{name}".endswith(f".{target}")]
        unfit = [name for name in matching if not is_linear[name]]
        if unfit or not matching:
            reason = f"{unfit[0]!r} is {_kind(modules[unfit[0]], head)}" if unfit else "there is no layer of that name"
            ends = sorted({name.rpartition(".")[2] for name in modules if is_linear[name]})
            raise UserError(
                f"target_modules of an adapter must be linear layers below the head, got {target!r}: {reason}. The "
                f"linear layers are called {', '.join(ends)}; {ALL_LINEAR!r} stands for all of them"
            )
        found |= dict.fromkeys(matching)
    return list(found)


def _kind(module: nn.Module, head: nn.Module | None) -> str:
    return "the head, which the losses apply by themselves" if module is head else f"of type {type(module).__name__}"


def _without_weights(source: Student) -> PreTrainedModel:
    plain = replace(source, weights="random", adapter=None, quantization=None)
    with torch.device("meta"):
        return load_causal_lm(plain, role="student")
