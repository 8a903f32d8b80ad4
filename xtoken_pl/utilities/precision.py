"""Numbers that keep their precision when a module is converted to another one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def keep_dtype(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Makes ``function``, given to ``Module._apply``, move tensors without changing their dtype.

    Under ``bf16-true`` Lightning converts whole modules; sums over an epoch, and the weights of W, would lose digits.
    """

    def moved(tensor: Tensor) -> Tensor:
        result = function(tensor)
        return result if result.dtype == tensor.dtype else tensor.to(result.device)

    return moved
