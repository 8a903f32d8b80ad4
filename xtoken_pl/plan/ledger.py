"""Counts the bytes that are alive while operations run on tensors without memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Held:
    """Bytes that are alive at one moment, besides the weights and their gradients.

    Attributes:
        activations: Hidden states and tensors that autograd saves for the backward pass.
        weight_copies: Copies of weights in autocast's dtype. Autocast keeps them until its context ends, autograd those
            that the backward pass needs.
    """

    activations: int
    weight_copies: int

    @property
    def total(self) -> int:
        return self.activations + self.weight_copies


class Ledger(TorchDispatchMode):
    """Counts the bytes of storages from their creation until they are freed.

    Args:
        model: Model whose parameters and buffers are not counted.

    Attributes:
        peak: What was held at the moment when it was most.
        is_in_backward: Whether autograd runs a backward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.peak = Held(0, 0)
        self.is_in_backward = False
        self._live = {"activations": 0, "weight_copies": 0}
        self._seen: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()  # whether it is a weight
        for tensor in (*model.parameters(), *model.buffers()):
            self._seen[tensor.untyped_storage()] = True

    def held(self) -> Held:
        """Returns what is alive now."""
        return Held(**self._live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note()
        if func in _RULES:
            with self:
                results = _RULES[func](*args, **(kwargs or {}))
        else:
            results = func(*args, **(kwargs or {}))
        is_copy = func is torch.ops.aten._to_copy.default and self._seen.get(args[0].untyped_storage(), False)
        self._add(tree_leaves(results), "weight_copies" if is_copy else "activations")
        # Autograd writes a sum of gradients into one of them if nothing else holds it, but not while operations are
        # watched; so what counts is what is left of the three when the next operation starts.
        if not (self.is_in_backward and func is torch.ops.aten.add.Tensor and not torch.is_grad_enabled()):
            self._note()
        return results

    def _note(self) -> None:
        self.peak = max(self.peak, self.held(), key=lambda held: held.total)

    def _add(self, results: Iterable[object], kind: str) -> None:
        for tensor in results:
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen[storage] = False
                self._live[kind] += storage.nbytes()
                weakref.finalize(storage, self._remove, kind, storage.nbytes())

    def _remove(self, kind: str, num_bytes: int) -> None:
        self._live[kind] -= num_bytes


def _grouped_product(first: Tensor, second: Tensor, offsets: Tensor | None = None, *_: object, **__: object) -> Tensor:
    """Product of fused experts, whose size does not depend on how many rows each expert gets.

    The operation's own rule for shapes knows bfloat16 alone.

    Shape:
        ``[S, K], [E, K, N] -> [S, N]`` for S rows of E experts; ``[M, S], [S, N] -> [E, M, N]``.

    Raises:
        ValueError: If ``first`` is no matrix, or there are no offsets.
    """
    if first.dim() != 2 or offsets is None:
        raise ValueError(f"a grouped product of tensors with {first.dim()} and {second.dim()} dimensions is not known")
    if second.dim() == 2:
        return first.new_empty(offsets.shape[0], first.shape[0], second.shape[1])
    return first.new_empty(first.shape[0], second.shape[2])


def _safe_softmax(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax that looks for rows of minus infinity; the operation's own rule does not know the mask of them."""
    weights = torch.softmax(scores, dim, dtype)
    torch.isneginf(scores)
    return weights


#: Operations -> what allocates as they do, where their own rules for shapes do not.
_RULES: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten._grouped_mm.default: _grouped_product,
    torch.ops.aten._safe_softmax.default: _safe_softmax,
}
