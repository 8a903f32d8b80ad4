"""The weights in a checkpoint, compared with those that a run with or without an adapter saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from xtoken_pl.utilities.errors import UserError

_STUDENT = "student."
_ADAPTER = (".lora_A.", ".lora_B.")
_WAYS_OUT = "give the `adapter` of the run that wrote it, or start a new run from its exported student"


def holds_adapter(state: Mapping[str, Any]) -> bool:
    """Whether a ``state_dict`` of a module holds an adapter."""
    return any(name.startswith(_STUDENT) and any(part in name for part in _ADAPTER) for name in state)


def check_weights_of_student(state: Mapping[str, Any], module: nn.Module, *, has_adapter: bool) -> None:
    """Compares the names in a checkpoint's ``state_dict`` with those that ``module`` saves.

    Args:
        state: The checkpoint's.
        module: That loads it.
        has_adapter: Whether it trains an adapter; Lightning does not compare the names then.

    Raises:
        UserError: If the checkpoint holds an adapter and the run trains all weights, the reverse, or the adapter goes
            into other layers.
    """
    if holds_adapter(state) != has_adapter:
        there, here = ("all weights", "an adapter") if has_adapter else ("an adapter", "all weights")
        raise UserError(f"the checkpoint holds {there} of a student, and this run trains {here}; {_WAYS_OUT}")
    if not has_adapter:
        return
    expected = module.state_dict().keys()
    for names, where in ((expected - state.keys(), "here"), (state.keys() - expected, "in the checkpoint")):
        if names:
            raise UserError(
                f"the weights of the checkpoint are not those that this run trains: {len(names)} are {where} only, "
                f"{min(names)!r} among them; {_WAYS_OUT}"
            )
