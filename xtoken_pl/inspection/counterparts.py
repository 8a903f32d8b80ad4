"""The teacher tokens that a loss compares a student token with, as they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from xtoken_pl.inspection.tokens import Token, tokens_of
from xtoken_pl.losses import CounterpartKind, LossCounterparts, SpanLoss
from xtoken_pl.losses.counterparts import counterparts_in_projection
from xtoken_pl.projection import Projection
from xtoken_pl.tokenization import CanonicalVocabulary


@dataclass(frozen=True)
class Counterpart:
    """What one student token is compared with.

    Attributes:
        token: The student's.
        kind: Of its row of W (``exact``, ``multi-token``, ``zero``), or whether it has a pair (``pair``, ``rest``).
        entries: Teacher tokens and their weights, the heaviest first.
    """

    token: Token
    kind: CounterpartKind
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
        return cls._of(counterparts_in_projection(projection, map(int, ids)), student, teacher)

    @classmethod
    def of_loss(
        cls, loss: SpanLoss, student: CanonicalVocabulary, teacher: CanonicalVocabulary, ids: Iterable[int]
    ) -> Counterparts | None:
        """What a bound loss compares some student tokens with; None where it pairs no tokens."""
        found = loss.counterparts(map(int, ids))
        return None if found is None else cls._of(found, student, teacher)

    @classmethod
    def _of(cls, found: LossCounterparts, student: CanonicalVocabulary, teacher: CanonicalVocabulary) -> Counterparts:
        rows: dict[int, Counterpart] = {}
        for token, (kind, teacher_ids, weights) in zip(
            tokens_of(student, found.by_id), found.by_id.values(), strict=True
        ):
            entries = list(zip(tokens_of(teacher, teacher_ids), weights, strict=True))
            rows[token.id] = Counterpart(token, kind, entries)
        return cls(found.name, rows)
