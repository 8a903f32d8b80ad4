"""What a loss asks of a teacher's rows, and what a source of rows gives, in the same words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: ``span_starts``: the distribution at the start of each span, and the probability c of the span's other tokens.
#: ``all``: the distribution of every row.
RowKind = Literal["span_starts", "all"]


@dataclass(frozen=True)
class RowContent:
    """Rows of a teacher, as they are asked for or given.

    Attributes:
        rows: Which rows there are. The log-probability of the observed tokens belongs to them, at the teacher's
            temperature and at 1.
        top_k: Number of tokens of a row, the most probable ones; None for all. The others share the remaining mass.
        hidden_states: Whether the hidden states that the teacher's head reads belong to them.
        branches: Whether the teacher can read tokens that the text does not have.
    """

    rows: RowKind = "all"
    top_k: int | None = None
    hidden_states: bool = False
    branches: bool = False

    def lacks(self, needs: RowContent) -> str | None:
        """What is asked for and not given, in words; None if nothing is missing.

        Any number of tokens will do: a loss is adapted to fewer (:meth:`xtoken_pl.SpanLoss.limit_teacher_tokens`).
        """
        if needs.hidden_states and not self.hidden_states:
            return "hidden states"
        if needs.branches and not self.branches:
            return "distributions behind tokens that the text does not have (lookahead)"
        if needs.rows == "all" and self.rows != "all":
            return "every row"
        return None
