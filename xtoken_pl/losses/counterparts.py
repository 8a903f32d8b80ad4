"""The teacher tokens that a loss compares a student token with, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from xtoken_pl.projection import Projection

#: Kind of a row of W (``exact``, ``multi-token``, ``zero``), or whether a token has a pair (``pair``, ``rest``).
CounterpartKind = Literal["exact", "multi-token", "zero", "pair", "rest"]


class TokenCounterparts(NamedTuple):
    """The teacher tokens that one student token is compared with.

    Attributes:
        kind: Kind of the comparison.
        teacher_ids: Teacher tokens, the one of largest weight first.
        weights: Weight of each of them.
    """

    kind: CounterpartKind
    teacher_ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class LossCounterparts:
    """The counterparts of some student tokens.

    Attributes:
        name: Heading of a table of them: ``rows of W``, ``pairs in C``.
        by_id: Counterparts by student token, in the order of the request.
    """

    name: str
    by_id: dict[int, TokenCounterparts]


def counterparts_in_projection(projection: Projection, student_ids: Iterable[int]) -> LossCounterparts:
    """The rows of W of some student tokens."""
    rows: dict[int, TokenCounterparts] = {}
    for token_id in dict.fromkeys(student_ids):
        weights, places = projection.weights[token_id].sort(descending=True, stable=True)
        num_used = int((weights > 0).sum())
        teacher_ids = projection.indices[token_id, places[:num_used]].tolist()
        kind: CounterpartKind = "exact" if projection.is_exact[token_id] else "multi-token" if teacher_ids else "zero"
        rows[token_id] = TokenCounterparts(kind, teacher_ids, weights[:num_used].tolist())
    return LossCounterparts("rows of W", rows)


def counterparts_in_pairs(teacher_token: Tensor, student_ids: Iterable[int]) -> LossCounterparts:
    """The pairs of some student tokens.

    Args:
        teacher_token: ``[V_s]`` teacher token of each student token, -1 for none.
        student_ids: Student tokens.
    """
    pairs: dict[int, TokenCounterparts] = {}
    for token_id in dict.fromkeys(student_ids):
        pair = int(teacher_token[token_id])
        pairs[token_id] = TokenCounterparts("rest", [], []) if pair < 0 else TokenCounterparts("pair", [pair], [1.0])
    return LossCounterparts("pairs in C", pairs)
