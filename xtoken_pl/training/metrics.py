"""Metrics that compare models across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor
from torch.nn import Module, ModuleDict
from torchmetrics import Metric

from xtoken_pl.batch import DistillBatch, Domain
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
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

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
    """Weighted mean of all values, over all batches and processes; NaN before the first value of a weight > 0."""

    def update(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Adds values of any shape, with weights of the same shape or, as bool, only some of them."""
        if weights is None:
            self.count += values.numel()
        else:
            values = (values * weights).where(weights > 0, 0)
            self.count += weights.sum()
        self.total += values.sum().to(self.total.dtype)


class TopOneAgreement(CountedMean):
    """Share of spans at which student and teacher find the same token most probable, after projection, in [0, 1]."""

    higher_is_better = True


class EvaluationMetrics(ModuleDict):
    """Metrics of validation and test by tag: ``bits_per_byte``, ``ce``, ``kd/NAME``, ``top1_agreement/NAME``.

    If the texts come from several sources, these are of all of them, and each has the same metrics by itself under
    ``SOURCE/bits_per_byte`` and so on.

    Args:
        teachers: Names of the teachers.
        domains: Domains of the texts, if they are known: only teachers that teach on one of them have metrics.
    """

    def __init__(self, teachers: Iterable[str], domains: Sequence[Domain] = ()) -> None:
        #: Source of each domain.
        sources = [domain.source for domain in domains]
        self.sources = sources if any(sources) else []
        taught = {name for domain in domains for name in domain.alphas}
        metrics = _of_texts([name for name in teachers if name in taught or not domains])
        for source in dict.fromkeys(self.sources):
            own = {name for domain in domains for name in domain.alphas if domain.source == source}
            of_source = _of_texts([name for name in teachers if name in own])
            metrics |= {f"{source}/{tag}": metric for tag, metric in of_source.items()}
        super().__init__(metrics)

    def add(
        self,
        scores: RowScores,
        num_bytes: Tensor,
        batch: DistillBatch,
        span_weights: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Adds a batch.

        Args:
            scores: Scores of the batch.
            num_bytes: ``[N]``, length in bytes of the token that each student row predicts.
            batch: The batch.
            span_weights: ``[S]`` weight of the loss of each span, for some teachers; 1 for the others.
        """
        self._add(scores, num_bytes, batch, span_weights, "", torch.ones_like(num_bytes, dtype=torch.bool))
        for source in dict.fromkeys(self.sources):
            is_of_source = num_bytes.new_tensor([own == source for own in self.sources], dtype=torch.bool)  # [D]
            self._add(scores, num_bytes, batch, span_weights, f"{source}/", is_of_source[batch.row_domain])

    def _add(
        self,
        scores: RowScores,
        num_bytes: Tensor,
        batch: DistillBatch,
        span_weights: Mapping[str, Tensor],
        prefix: str,
        wanted: Tensor,
    ) -> None:
        """Adds the rows that are ``wanted``, ``[N]`` bool, and the spans that begin in them."""
        nats = scores.token_nats
        cast(CountedMean, self[f"{prefix}ce"]).update(nats, wanted)
        with_bytes = nats.where(wanted & (num_bytes > 0), 0)
        cast(BitsPerByte, self[f"{prefix}bits_per_byte"]).update(with_bytes, num_bytes * wanted)
        for name, spans in scores.spans.items():
            if f"{prefix}kd/{name}" not in self:
                continue
            is_wanted = wanted[batch.teachers[name].spans.student_first]  # [S]
            cast(CountedMean, self[f"{prefix}kd/{name}"]).update(spans.loss, is_wanted * span_weights.get(name, 1))
            if spans.agreement is not None:
                cast(CountedMean, self[f"{prefix}top1_agreement/{name}"]).update(spans.agreement, is_wanted)


def _of_texts(teachers: Iterable[str]) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {"bits_per_byte": BitsPerByte(), "ce": CountedMean()}
    for name in teachers:
        metrics |= {f"kd/{name}": CountedMean(), f"top1_agreement/{name}": TopOneAgreement()}
    return metrics
