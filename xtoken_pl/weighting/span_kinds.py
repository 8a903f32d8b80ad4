"""Weights of the kinds of spans, as the teachers' specifications give them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from xtoken_pl.batch import DistillBatch
from xtoken_pl.specs import Teacher
from xtoken_pl.utilities.tensors import filled


def kind_weights(teachers: Mapping[str, Teacher], like: Tensor) -> dict[str, Tensor]:
    """Returns the weight of each kind of span, ``[4]``, for the teachers whose weights are not all 1.

    Args:
        teachers: Specifications by name.
        like: Tensor whose dtype and device the weights take.
    """
    given = {name: teacher.kind_weights for name, teacher in teachers.items()}
    return {name: filled(weights, like) for name, weights in given.items() if weights is not None}


def span_weights(weights: Mapping[str, Tensor], batch: DistillBatch) -> dict[str, Tensor]:
    """Returns the weight of each span of a batch, ``[S]`` by teacher, from those of the kinds, ``[4]``."""
    return {name: of_kind[batch.teachers[name].spans.kind] for name, of_kind in weights.items()}
