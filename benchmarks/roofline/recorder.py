"""Records the FLOP and the bytes of the operations that the code runs on tensors that only have shapes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import xtoken_pl

_PACKAGE = str(Path(xtoken_pl.__file__).parent)
_aten = torch.ops.aten
#: Operations that allocate, or run on the host.
_FREE = {_aten.empty, _aten.empty_like, _aten.new_empty, _aten.empty_strided, _aten.detach, _aten.lift_fresh}
#: Operations that read of their first tensor no more than they write.
_SELECTING = {_aten.index_select, _aten.gather, _aten.index, _aten.embedding}
#: Operations that write into their first tensor only where another tensor says, and the place of the values.
_SCATTERING = {_aten.index_add_: 3, _aten.index_add: 3, _aten.scatter_: 3, _aten.index_put_: 2, _aten.index_copy_: 3}
#: Operations that do not read their first tensor.
_WRITING_ONLY = {
    _aten.copy_,
    _aten.fill_,
    _aten.zero_,
    _aten.new_zeros,
    _aten.zeros_like,
    _aten.ones_like,
    _aten.full_like,
}


@dataclass(frozen=True)
class Operation:
    """One kernel.

    Attributes:
        name: Name of the operation, such as ``_log_softmax``.
        function: Function of xtoken_pl that runs it, such as ``models/head.py: normalize``.
        place: What the evaluation does at that time, as its local variables say: the function of
            ``scoring/evaluation.py``, and the side or teacher.
        matrix_flop, vector_flop: FLOP of products, and one for each number that another operation writes.
        num_bytes: Bytes that it reads and writes, each tensor once.
    """

    name: str
    function: str
    place: tuple[str, str]
    matrix_flop: float
    vector_flop: float
    num_bytes: float


class Recorder(TorchDispatchMode):
    """Records operations; to be entered after the fake tensor mode.

    Every operation reads its arguments from memory and writes its results there, once; nothing is fused, as torch runs
    them one by one. A sort counts as one pass, although it takes several.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(func, torch._ops.OpOverload) and not _is_free(func):
            self.operations.append(self._operation(func, args, kwargs, result))
        return result

    def _operation(self, func: Any, args: Any, kwargs: Any, result: Any) -> Operation:
        packet, written = func.overloadpacket, [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        flop = 0.0
        if "scaled_dot_product" in func.__name__:
            flop = _attention_flop(func.__name__, args)
        elif packet in flop_registry:
            flop = float(flop_registry[packet](*args, **kwargs, out_val=result))
        numbers = 0 if flop else sum(x.numel() for x in written)
        function, place = _caller()
        return Operation(packet.__name__, function, place, flop, numbers, _bytes(func, args, kwargs, written))


def _is_free(func: Any) -> bool:
    if func.namespace != "aten" or func.overloadpacket in _FREE:
        return True
    returns = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returns)  # a view


def _bytes(func: Any, args: Any, kwargs: Any, written: list[Tensor]) -> float:
    packet = func.overloadpacket
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if packet in _SCATTERING:
        values = args[_SCATTERING[packet]]
        of_values = _size(values) if isinstance(values, Tensor) else 0
        indices = sum(_size(x) for x in given if not x.is_floating_point())
        copied = 0 if packet.__name__.endswith("_") else 2 * _size(args[0])
        return copied + indices + 3 * of_values
    if packet in _SELECTING:
        indices = sum(_size(x) for x in given if not x.is_floating_point())
        return indices + 2 * sum(map(_size, written))
    is_out = func._overloadname in ("out", "dtype_out")
    outputs = {id(x) for x in written}
    if packet in _WRITING_ONLY:
        given = [x for x in given if x is not args[0]]
    read = sum(_size(x) for x in given if not (is_out and id(x) in outputs))
    return read + sum(map(_size, written))


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers, those that are repeated by ``expand`` once."""
    numbers = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numbers *= size if stride or not size else 1
    return numbers * tensor.itemsize


def _attention_flop(name: str, args: Any) -> float:
    """Two products of the queries with the keys before them, and five in the backward pass (one is computed again)."""
    is_backward = "backward" in name
    query, key = (args[1], args[2]) if is_backward else (args[0], args[1])
    batch, heads, length, size = query.shape
    one = 2 * batch * heads * length * key.shape[2] * size / 2  # half of the keys come before a query
    return (5 if is_backward else 2) * one


def _caller() -> tuple[str, tuple[str, str]]:
    """The innermost function of xtoken_pl, and what the evaluation does."""
    function, place = "", ("", "")
    for frame in _frames():
        code = frame.f_code
        if not code.co_filename.startswith(_PACKAGE) or code.co_name.startswith("<"):
            continue
        function = function or f"{code.co_filename[len(_PACKAGE) + 1 :]}: {code.co_name}"
        if code.co_filename.endswith("scoring/evaluation.py"):
            if not place[0] or (place[0] in _INNER and code.co_name not in _INNER):
                place = (place[0] or code.co_name, place[1] or str(frame.f_locals.get("name", "")))
            if code.co_name in ("score", "gradients"):
                return function, (f"{code.co_name}/{place[0]}", place[1])
    return function, place


#: Functions of the evaluation that do not know which side they are called for.
_INNER = {"_to_logits", "_slope", "_full_precision", "_teacher_side"}


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back
