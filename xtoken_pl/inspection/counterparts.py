"""The teacher tokens that a loss compares a student token with, for display."""

from __future__ import annotations

from dataclasses import dataclass

from xtoken_pl.inspection.tokens import Token, tokens_of
from xtoken_pl.losses import CounterpartKind, LossCounterparts
from xtoken_pl.tokenization import CanonicalVocabulary


@dataclass(frozen=True)
class Counterpart:
    """The teacher tokens that one student token is compared with.

    Attributes:
        token: The student's token.
        kind: Kind of its row of W (``exact``, ``multi-token``, ``zero``), or whether it has a pair (``pair``,
            ``rest``).
        entries: Teacher tokens and their weights, the heaviest first.
    """

    token: Token
    kind: CounterpartKind
    entries: list[tuple[Token, float]]

    @property
    def is_plain(self) -> bool:
        """Whether there is exactly one teacher token, with the same text."""
        return self.kind in ("exact", "pair")

    def __str__(self) -> str:
        if not self.entries:
            return self.kind
        return f"{self.kind}: " + " + ".join(f"{weight:.3g} {token.text}" for token, weight in self.entries)


@dataclass(frozen=True)
class Counterparts:
    """The counterparts of the tokens of a text.

    Attributes:
        name: Heading: ``rows of W``, ``pairs in C``.
        by_id: Counterparts by student token, in the order of the text.
    """

    name: str
    by_id: dict[int, Counterpart]

    @classmethod
    def from_loss(
        cls, found: LossCounterparts | None, student: CanonicalVocabulary, teacher: CanonicalVocabulary
    ) -> Counterparts | None:
        """Converts the counterparts that a loss or W gives; None for a loss that pairs no tokens."""
        if found is None:
            return None
        rows = zip(tokens_of(student, found.by_id), found.by_id.values(), strict=True)
        by_id = {
            token.id: Counterpart(token, kind, list(zip(tokens_of(teacher, teacher_ids), weights, strict=True)))
            for token, (kind, teacher_ids, weights) in rows
        }
        return cls(found.name, by_id)

    @property
    def plain(self) -> list[Counterpart]:
        """Counterparts of tokens with exactly one teacher token."""
        return [row for row in self.by_id.values() if row.is_plain]

    @property
    def others(self) -> list[Counterpart]:
        """All other counterparts."""
        return [row for row in self.by_id.values() if not row.is_plain]
