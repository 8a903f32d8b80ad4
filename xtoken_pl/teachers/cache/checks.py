"""Which losses and weightings find what they need in a cache."""

from __future__ import annotations

from typing import Literal

from xtoken_pl.losses import MatchedRowLoss, SpanLoss
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.weighting import Weighting


def check_cacheable(name: str, loss: SpanLoss | Literal["auto"], weighting: Weighting) -> None:
    """Refuses what needs more of a teacher than its distribution at the start of every span.

    Args:
        name: The teacher's.
        loss: Its loss; those that ``auto`` chooses can all be cached.

    Raises:
        UserError: If the loss reads every teacher row, or the weighting a confidence other than the log-probability.
    """
    if isinstance(loss, SpanLoss):
        kind = type(loss).__name__
        exits = "choose another loss (ProjectionKL, HybridKL), or leave `cache` out"
        if not isinstance(loss, MatchedRowLoss) or loss.planner is not None:
            raise UserError(
                f"a cache holds one teacher row per span, and {kind} of teacher {name!r} reads them all; {exits}"
            )
        if loss.merge == "mean":
            raise UserError(
                f"a cache holds one teacher row per span, and merge='mean' of teacher {name!r} averages them all; "
                f"use merge='chain_rule', or leave `cache` out"
            )
    if weighting.row_confidence is not None and not weighting.confidence_is_log_prob:
        measure = getattr(weighting, "measure", None)
        measured = "a confidence of its own" if measure in (None, "cross_entropy") else measure
        raise UserError(
            f"of a cached teacher ({name!r}) only the log-probability of the text is known, and "
            f"{type(weighting).__name__} measures {measured}; use measure='cross_entropy' or StaticWeighting, or leave "
            "`cache` out"
        )
