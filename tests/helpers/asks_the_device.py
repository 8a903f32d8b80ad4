"""Watches for operations that the CPU has to wait for."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class AsksTheDevice(TorchDispatchMode):
    """Notes operations whose result the CPU has to wait for, and tensors that are made of a list of numbers.

    On a GPU such a tensor (``lift_fresh``, of ``new_tensor``) is copied from the host, which waits for the copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "bincount")
        name = function.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        is_copied = name == "lift_fresh" and args[0].dim() > 0  # a scalar that is assigned is filled on the device
        if name in waits or name.startswith("_unique") or by_mask or is_copied:
            self.asked.append(name)
        return function(*args, **(kwargs or {}))
