"""Metrics that compare models across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import Module, ModuleDict
from torchmetrics import Metric

from xtoken_pl.scoring.tasks import RowScores
from xtoken_pl.utilities.precision import keep_dtype


class _Ratio(Metric):
    """Sum of values over their count, over batches and processes; NaN before the first update.

    The sums are in double precision, whatever the dtype of the module.
    """

    full_state_update = False
    is_differentiable = False

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        return (self.total / self.count).float()

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        return super()._apply(keep_dtype(fn), exclude_state)


class BitsPerByte(_Ratio):
    r"""Negative log-likelihood of a text in bits, per byte of the text.

    .. math:: \frac{\sum_i -\log p(x_i | x_{<i})}{\ln 2 \cdot \text{bytes}}

    Unlike perplexity per token it is comparable between models of different tokenizers. The caller leaves out tokens
    without bytes (eos).

    Shape:
        nats: any; num_bytes: the same; the result is a scalar, NaN before the first update.
    """

    higher_is_better = False

    def update(self, nats: Tensor, num_bytes: Tensor) -> None:
        """Adds tokens: their negative log-likelihoods in nats, and their lengths in bytes."""
        self.total += nats.sum().to(self.total.dtype) / math.log(2)
        self.count += num_bytes.sum()


class CountedMean(_Ratio):
    """Mean of all values, over all batches and processes; NaN before the first value."""

    def update(self, values: Tensor) -> None:
        """Adds values of any shape."""
        self.total += values.sum().to(self.total.dtype)
        self.count += values.numel()


class TopOneAgreement(CountedMean):
    """Share of spans at which student and teacher find the same token most probable, after projection, in [0, 1]."""

    higher_is_better = True


class EvaluationMetrics(ModuleDict):
    """Metrics of validation and test by tag: ``bits_per_byte``, ``ce``, ``kd/NAME``, ``top1_agreement/NAME``.

    Args:
        teachers: Names of the teachers.
    """

    def __init__(self, teachers: Iterable[str]) -> None:
        metrics: dict[str, Metric] = {"bits_per_byte": BitsPerByte(), "ce": CountedMean()}
        for name in teachers:
            metrics |= {f"kd/{name}": CountedMean(), f"top1_agreement/{name}": TopOneAgreement()}
        super().__init__(metrics)

    def add(self, scores: RowScores, num_bytes: Tensor) -> None:
        """Adds a batch.

        Args:
            scores: Scores of the batch.
            num_bytes: ``[N]``, length in bytes of the token that each student row predicts.
        """
        values = {"ce": scores.token_nats}
        for name, spans in scores.spans.items():
            values[f"kd/{name}"] = spans.loss
            if spans.agreement is not None:
                values[f"top1_agreement/{name}"] = spans.agreement
        for tag, value in values.items():
            cast(CountedMean, self[tag]).update(value)
        cast(BitsPerByte, self["bits_per_byte"]).update(scores.token_nats * (num_bytes > 0), num_bytes)
