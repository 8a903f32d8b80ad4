"""One layout of checkpoints, whatever wrote them: one process, several, sharded or not."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer


def share_tied_weights(state: dict[str, Any], module: nn.Module) -> None:
    """Makes the entries of a ``state_dict`` that are one parameter one tensor, so that it is stored once.

    Args:
        state: Of ``module``; gathering a sharded one copies tied weights.
    """
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in state:
            state[name] = state[first.setdefault(id(parameter), name)]


def number_by_module(state: dict[str, Any], optimizer: Optimizer, module: nn.Module) -> None:
    """Numbers the parameters of an optimizer's state by their place in ``module.parameters()``.

    A sharded run numbers them so, and reads them so; torch numbers them by the optimizer's groups, and goes by their
    order alone when it reads. With the same numbers either reads what the other wrote.

    Args:
        state: The optimizer's ``state_dict``; numbered by groups, or by the module already. That of a distributed
            checkpoint goes by names, and stays as it is.
    """
    if any(isinstance(number, str) for number in state["state"]):
        return
    place = {id(parameter): index for index, parameter in enumerate(module.parameters())}
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    new: dict[int, int] = {}
    for stored, group in groups:
        new |= {old: place[id(p)] for old, p in zip(stored["params"], group["params"], strict=True)}
    state["state"] = {new[number]: value for number, value in state["state"].items()}
    for stored in state["param_groups"]:
        stored["params"] = [new[number] for number in stored["params"]]
