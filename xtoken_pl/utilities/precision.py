"""Protects tensors of a module from a change of its precision."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def keep_dtype(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wraps ``function``, an argument of ``Module._apply``, so that it moves tensors without changing their dtype.

    Under ``bf16-true`` Lightning converts whole modules; sums over an epoch, and the weights of W, would lose digits.
    """

    def moved(tensor: Tensor) -> Tensor:
        result = function(tensor)
        return result if result.dtype == tensor.dtype else tensor.to(result.device)

    return moved
