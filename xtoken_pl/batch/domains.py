"""Domains: windows that the same teachers teach on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """Windows of one source that the same teachers teach on, each with one static weight.

    A source is one domain. One whose rows name their teacher (``teacher_field``) is one for each teacher, and one for
    the rows that name none.

    Attributes:
        source: Name of the source; ``""`` for the only source of a split.
        alphas: Static weight of every teacher that teaches on these windows; None for the alpha of its specification.
    """

    source: str
    alphas: Mapping[str, float | None]

    def alpha_of(self, teacher: str, own: float) -> float | None:
        """Returns the weight of a teacher whose specification says ``own``; None if it does not teach here."""
        given = self.alphas.get(teacher)
        return None if teacher not in self.alphas else own if given is None else given
