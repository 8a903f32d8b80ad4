"""Which teacher tokens a loss compares a student token with: its row of W, or its pair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from xtoken_pl.inspection.tokens import Token, tokens_of
from xtoken_pl.losses import PartitionedLoss, ProjectionKL, SpanLoss
from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary

RowKind = Literal["exact", "multi-token", "zero", "pair", "rest"]

_OF_W, _OF_PAIRS = "rows of W", "pairs in C"


@dataclass(frozen=True)
class Counterpart:
    """What one student token is compared with.

    Attributes:
        token: The student's.
        kind: Of its row of W (``exact``, ``multi-token``, ``zero``), or whether it has a pair (``pair``, ``rest``).
        entries: Teacher tokens and their weights, the heaviest first.
    """

    token: Token
    kind: RowKind
    entries: list[tuple[Token, float]]

    @property
    def is_plain(self) -> bool:
        """Whether there is one teacher token of the same text."""
        return self.kind in ("exact", "pair")

    def __str__(self) -> str:
        if not self.entries:
            return self.kind
        return f"{self.kind}: " + " + ".join(f"{weight:.3g} {token.text}" for token, weight in self.entries)


@dataclass(frozen=True)
class Counterparts:
    """Those of the tokens of a text.

    Attributes:
        name: What they are: rows of W, or pairs in C.
        by_id: By student token, in the order of the text.
    """

    name: str
    by_id: dict[int, Counterpart]

    @classmethod
    def of_projection(
        cls,
        projection: Projection,
        student: CanonicalVocabulary,
        teacher: CanonicalVocabulary,
        ids: Iterable[int],
    ) -> Counterparts:
        """The rows of W of some student tokens."""
        rows: dict[int, Counterpart] = {}
        for token in _distinct(student, ids):
            weights, places = projection.weights[token.id].sort(descending=True, stable=True)
            used = [(teacher_id, weight) for teacher_id, weight in zip(places.tolist(), weights.tolist(), strict=True)]
            kept = [(int(projection.indices[token.id, place]), weight) for place, weight in used if weight > 0]
            entries = list(zip(tokens_of(teacher, [i for i, _ in kept]), [w for _, w in kept], strict=True))
            kind: RowKind = "exact" if projection.is_exact[token.id] else "multi-token" if entries else "zero"
            rows[token.id] = Counterpart(token, kind, entries)
        return cls(_OF_W, rows)

    @classmethod
    def of_loss(
        cls, loss: SpanLoss, student: CanonicalVocabulary, teacher: CanonicalVocabulary, ids: Iterable[int]
    ) -> Counterparts | None:
        """What a bound loss compares some student tokens with; None where it pairs no tokens."""
        if isinstance(loss, ProjectionKL):
            return cls.of_projection(loss.projection, student, teacher, ids)
        if not isinstance(loss, PartitionedLoss):
            return None
        rows: dict[int, Counterpart] = {}
        for token in _distinct(student, ids):
            pair = int(loss.counterpart[token.id])
            entries = [] if pair < 0 else [(tokens_of(teacher, [pair])[0], 1.0)]
            rows[token.id] = Counterpart(token, "pair" if entries else "rest", entries)
        return cls(_OF_PAIRS, rows)


def _distinct(student: CanonicalVocabulary, ids: Iterable[int]) -> list[Token]:
    return tokens_of(student, dict.fromkeys(int(token_id) for token_id in ids))
