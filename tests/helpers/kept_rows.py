"""Rows of a teacher of which few tokens are kept, for slow references."""

import math
from collections.abc import Sequence


def keep_and_spread(row: Sequence[float], observed: int, top_k: int) -> tuple[list[float], set[int]]:
    """A row whose tokens share their probability evenly, but the k most probable ones and the observed one.

    Returns:
        The row, and the tokens that are kept; a token of probability 0 does not exist.
    """
    exist = [v for v, q in enumerate(row) if q > 0]
    kept = {*sorted(exist, key=lambda v: -row[v])[:top_k], observed}
    tail = [v for v in exist if v not in kept]
    spread, mass = list(row), math.fsum(row[v] for v in tail)
    for v in tail:
        spread[v] = mass / len(tail)
    return spread, kept
