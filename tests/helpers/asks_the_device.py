"""Watches for operations whose result the CPU has to wait for."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class AsksTheDevice(TorchDispatchMode):
    """Notes operations whose result the CPU has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "bincount")
        name = function.overloadpacket.__name__
        by_mask = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in waits or name.startswith("_unique") or by_mask:
            self.asked.append(name)
        return function(*args, **(kwargs or {}))
