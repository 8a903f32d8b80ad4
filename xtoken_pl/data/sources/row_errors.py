"""The error of a row that cannot be used."""

from __future__ import annotations

from typing import Any

from xtoken_pl.utilities.errors import UserError


class RowError(UserError):
    """Raised for a row that cannot be used; its place is filled in where it is known.

    Args:
        rule: Message before the place.
        way_out: Message after the place.
        where: The place, such as ``row 3 of 'texts.jsonl'``.
    """

    def __init__(self, rule: str, way_out: str, where: str = "a row") -> None:
        super().__init__(f"{rule}{where}{way_out}")
        self.rule, self.way_out, self.where = rule, way_out, where

    def at(self, where: str) -> RowError:
        """Returns the error with its place."""
        return RowError(self.rule, self.way_out, where)

    def __reduce__(self) -> tuple[Any, ...]:
        return RowError, (self.rule, self.way_out, self.where)
