"""Which losses and weightings find what they need in a cache."""

from __future__ import annotations

from typing import Literal

from xtoken_pl.losses import SpanLoss
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.weighting import Weighting


def check_cacheable(name: str, loss: SpanLoss | Literal["auto"], weighting: Weighting) -> None:
    """Refuses what needs more of a teacher than its distribution at the start of every span.

    Args:
        name: The teacher's.
        loss: Its loss; those that ``auto`` chooses can all be cached.

    Raises:
        UserError: If the loss reads more of a teacher (:meth:`xtoken_pl.SpanLoss.why_not_cacheable`), or the weighting
            a confidence other than the log-probability.
    """
    of_loss = None if loss == "auto" else loss.why_not_cacheable()
    if of_loss is not None:
        raise UserError(f"the loss of teacher {name!r} cannot be cached: {of_loss}, or leave `cache` out")
    of_weighting = weighting.why_not_cacheable()
    if of_weighting is not None:
        raise UserError(
            f"of a cached teacher ({name!r}) only the log-probability of the text is known, and {of_weighting}; use "
            "measure='cross_entropy' or StaticWeighting, or leave `cache` out"
        )
