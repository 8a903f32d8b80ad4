"""Tensors that are made without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def filled(values: Sequence[float], like: Tensor) -> Tensor:
    """Returns a few numbers of the host as a vector on the device of ``like``, in its dtype.

    Each is filled in by the device. ``like.new_tensor(values)`` would copy them, and the host would wait for the copy
    until the device has done all work before it.

    Args:
        values: ``[N]`` numbers, N > 0.
        like: Tensor on the device.
    """
    return torch.stack([like.new_full((), value) for value in values])
