"""Which weights of a student an adapter wraps."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from xtoken_pl.specs import LoRA
from xtoken_pl.specs.lora import ALL_LINEAR
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import first_of

#: Use of a layer's whole weight in a source text, in place of a call of the layer.
_READ_WEIGHT = re.compile(r"\bself\.(\w+)\.weight\b(?!\[|\.(?:dtype|device|shape|size|requires_grad)\b)")
#: Architectures' own classes that are linear layers; others, such as Llama 4's router, give other results.
_OWN_LINEAR = {"FalconLinear"}


@dataclass(frozen=True)
class Targets:
    """What an adapter wraps, by full names.

    Attributes:
        layers: Linear layers.
        parameters: Weights that PEFT adapts by themselves: experts that are one tensor ``[experts, ., .]``, and those
            of linear layers that PEFT would take for experts (:func:`_taken_for_experts`).
    """

    layers: list[str]
    parameters: list[str]


def find_targets(model: PreTrainedModel, adapter: LoRA) -> Targets:
    """Finds what ``adapter`` wraps.

    PEFT has no dropout for parameters: with dropout, ``all-linear`` leaves them out, with a warning.

    Raises:
        UserError: If a target module is not a linear layer of the model below its head, if the model reads its weight
            in place of calling it, so that an adapter would change nothing, or if it cannot have dropout.
    """
    layers = _target_layers(model, adapter)
    taken = _taken_for_experts(model, layers)
    parameters = [f"{name}.weight" for name in layers if name in taken]
    if adapter.target_modules == ALL_LINEAR:
        named = model.named_parameters()
        parameters += [name for name, weight in named if weight.dim() == 3 and "experts" in name.split(".")]
    if parameters and adapter.dropout and adapter.target_modules != ALL_LINEAR:
        raise UserError(
            "with dropout, target_modules of an adapter must be layers that PEFT does not take for experts, which have "
            f"no dropout, got {adapter.target_modules!r}: PEFT takes {first_of(taken)}; set adapter.dropout to 0, or "
            "name other layers as adapter.target_modules"
        )
    if parameters and adapter.dropout:
        reason = (
            "experts, or what PEFT takes for experts, which have no dropout; set adapter.dropout to 0 to adapt them"
        )
        _warn_of(model, parameters, reason)
        parameters = []
    return Targets([name for name in layers if name not in taken], parameters)


def _target_layers(model: PreTrainedModel, adapter: LoRA) -> list[str]:
    head = model.get_output_embeddings()
    modules = dict(model.named_modules())
    reasons = {name: _unfit(name, modules, head) for name in modules}
    given = adapter.target_modules
    if given == ALL_LINEAR:
        read = [name for name, reason in reasons.items() if reason == _IS_READ]
        if read:
            _warn_of(model, [f"{name}.weight" for name in read], "layers that the model reads rather than calls")
        return [name for name, reason in reasons.items() if reason is None]
    found: dict[str, None] = {}
    patterns = {given: given} if isinstance(given, str) else {part: rf"(.*\.)?{re.escape(part)}" for part in given}
    for target, pattern in patterns.items():
        matching = [name for name in modules if re.fullmatch(pattern, name)]
        unfit = [name for name in matching if reasons[name] is not None]
        if unfit or not matching:
            reason = f"{unfit[0]!r} is {reasons[unfit[0]]}" if unfit else "there is no layer of that name"
            ends = sorted({name.rpartition(".")[2] for name in modules if reasons[name] is None})
            raise UserError(
                f"target_modules of an adapter must be linear layers below the head, got {target!r}: {reason}. The "
                f"linear layers are called {', '.join(ends)}; {ALL_LINEAR!r} selects all of them"
            )
        found |= dict.fromkeys(matching)
    return list(found)


def _taken_for_experts(model: PreTrainedModel, layers: Collection[str]) -> set[str]:
    """Names of linear layers, such as those of a shared expert, whose adapters PEFT would move to the fused experts.

    PEFT converts the names of layers that were experts in older versions of some architectures, wherever they are.
    """
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers as convert
    except ImportError:  # a PEFT that converts nothing
        return set()

    @cache
    def is_taken(end: str) -> bool:
        config = LoraConfig(target_modules=[f"layer.{end}"])
        try:
            convert(config, model, [])
        except ValueError:  # only together with others
            return True
        return f"layer.{end}" not in (config.target_modules or ())

    return {name for name in layers if is_taken(name.rpartition(".")[2])}


_IS_READ = "read by the layer around it rather than called, so that an adapter would change nothing"


def _unfit(name: str, modules: dict[str, nn.Module], head: nn.Module | None) -> str | None:
    """Reason why a module cannot have an adapter; None if it can."""
    module = modules[name]
    if module is head:
        return "the head, which the losses apply separately"
    kind = type(module)
    is_own = kind.__module__.startswith("transformers.models.") and kind.__name__ not in _OWN_LINEAR
    if not isinstance(module, nn.Linear | Conv1D) or is_own:
        return f"of type {kind.__name__}"
    around, _, own_name = name.rpartition(".")
    return _IS_READ if own_name in _read_by(cast(Any, type(modules[around]))) else None


@cache
def _read_by(kind: Any) -> frozenset[str]:
    """Names of the layers of a module whose weights it passes on, as the mixers of Mamba do to their kernels."""
    try:
        return frozenset(_READ_WEIGHT.findall(inspect.getsource(kind)))
    except (OSError, TypeError):  # a class without a source file
        return frozenset()


def _warn_of(model: PreTrainedModel, names: Collection[str], reason: str) -> None:
    total = sum(weight.numel() for weight in model.parameters())
    share = sum(model.get_parameter(name).numel() for name in names) / total
    rank_zero_warn(
        f"the adapter leaves {len(names)} weights of the student as they are ({share:.1%} of all its parameters, such "
        f"as {next(iter(names))!r}): {reason}"
    )
