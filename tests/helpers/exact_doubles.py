"""Runs the bodies of transformers' models in double precision throughout.

Normalization layers, routers and recurrences compute in single precision, whatever a model's own: two ways to compute
the same gradient then agree to 1e-7 at best, and a comparison to 1e-10 would be one of roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from xtoken_pl.models.causal_lm import body_of, load_causal_lm


class KeepsDoubles(TorchFunctionMode):
    """Casts nothing from float64 to float32, and makes no float32 tensors."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.dtype != torch.float64:
            return function(*args, **(kwargs or {}))
        if function is Tensor.float:
            return first
        if function is torch._grouped_mm:  # has no float64 on a CPU
            return _grouped_product(*args, **(kwargs or {}))
        changed = tuple(torch.float64 if value is torch.float32 else value for value in args)
        options = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return function(*changed, **options)


def _grouped_product(rows: Tensor, weights: Tensor, *, offs: Tensor, **_: Any) -> Tensor:
    """Rows of each group times its matrix, ``[N, K], [E, K, M] -> [N, M]``; ``offs`` [E] are the ends of the groups."""
    ends = offs.tolist()
    groups = zip([0, *ends[:-1]], ends, weights, strict=True)
    return torch.cat([rows[start:end] @ weight for start, end, weight in groups])


@contextmanager
def bodies_in_double() -> Iterator[None]:
    """Has every model of float64 that the package loads compute up to its head in float64; the package is as it is."""

    def load(*arguments: Any, **options: Any) -> PreTrainedModel:
        model = load_causal_lm(*arguments, **options)
        if model.dtype == torch.float64:
            body: Any = body_of(model)
            body.forward = _in_double(body.forward)
        return model

    with (
        mock.patch("xtoken_pl.models.causal_lm.load_causal_lm", load),
        mock.patch("xtoken_pl.teachers.local.load_causal_lm", load),
    ):
        yield


def _in_double(forward: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*arguments: Any, **options: Any) -> Any:
        with KeepsDoubles():
            return forward(*arguments, **options)

    return inside
