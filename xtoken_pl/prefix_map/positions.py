"""What the byte-prefix KL reads of a batch, in tables that are cut to the rows of a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch import LossPlan, Movable

# N student rows, R positions, L levels, G branches, X inherited packets of mass


class _Column(NamedTuple):
    """The table of a column, and what its entries are indices of (-1 for none), where they depend on the batch."""

    table: str
    refers_to: str | None = None


@dataclass
class Positions(Movable):
    """Student positions of one kind, and how the observed path of teacher tokens divides the members behind them.

    A *position* is a student row at which the teacher's distributions are known. Its *columns* are what their mass is
    gathered in: groups of student tokens with the same leading teacher token at a boundary that both sides share,
    student tokens inside a teacher token. A *level* is a node on the observed path, together with the teacher
    row that tells what follows it. Its members are divided into *branches*: neighbours that end there, or go on with
    the same teacher token.

    Attributes:
        before: By table, ``[N + 1]`` entries of the student rows before each row; kept on the host. Besides the tables
            of columns, ``members`` and ``extending`` count those of branches and between ``low`` and ``high``.
        row: ``[R]`` student rows, increasing.
        teacher: ``[R]`` the row of the teacher token that the position lies in, or begins with.
        observed_column: ``[R]`` the column of the observed teacher token's mass; -1 where levels divide it, or it has
            none.
        divided_column: ``[R]`` at a boundary, the column that levels divide.
        consumed: ``[R]`` bytes of the teacher token that are there already.
        low, high: ``[R]`` inside, the teacher tokens that begin with these bytes, in the map's order.
        level_position: ``[L]``.
        level_teacher: ``[L]`` the row of what follows the level's node.
        residual_branch, residual_column: ``[L]`` what gets the mass of teacher tokens that no member goes on with.
        last_branch, last_column: ``[L]`` what gets the mass of the path's last token; both -1 where it goes on.
        branch_level: ``[G]``.
        branch_token: ``[G]`` the teacher token that a branch goes on with, -1 where its mass comes from elsewhere.
        branch_start, branch_length: ``[G]`` its members.
        heir_branch: ``[X]`` at a boundary, what gets the mass of a teacher token that leads no student token.
        heir_teacher, heir_token: ``[X]`` the row and the token.
    """

    before: dict[str, NDArray[np.int64]]
    row: Annotated[Tensor, _Column("positions", "student")]
    teacher: Annotated[Tensor, _Column("positions", "teacher")]
    observed_column: Annotated[Tensor, _Column("positions")]
    divided_column: Annotated[Tensor, _Column("positions")]
    consumed: Annotated[Tensor, _Column("positions")]
    low: Annotated[Tensor, _Column("positions")]
    high: Annotated[Tensor, _Column("positions")]
    level_position: Annotated[Tensor, _Column("levels", "positions")]
    level_teacher: Annotated[Tensor, _Column("levels", "teacher")]
    residual_branch: Annotated[Tensor, _Column("levels", "branches")]
    residual_column: Annotated[Tensor, _Column("levels")]
    last_branch: Annotated[Tensor, _Column("levels", "branches")]
    last_column: Annotated[Tensor, _Column("levels")]
    branch_level: Annotated[Tensor, _Column("branches", "levels")]
    branch_token: Annotated[Tensor, _Column("branches")]
    branch_start: Annotated[Tensor, _Column("branches")]
    branch_length: Annotated[Tensor, _Column("branches")]
    heir_branch: Annotated[Tensor, _Column("heirs", "branches")]
    heir_teacher: Annotated[Tensor, _Column("heirs", "teacher")]
    heir_token: Annotated[Tensor, _Column("heirs")]

    def cut(self, student_rows: slice, teacher_rows: slice) -> Positions:
        """Those of some student rows, with indices counted from the first of them and of the teacher rows."""
        first = {table: int(before[student_rows.start]) for table, before in self.before.items()}
        end = {table: int(before[student_rows.stop]) for table, before in self.before.items()}
        bases = {**first, "student": student_rows.start, "teacher": teacher_rows.start}

        def part(name: str, table: str, refers_to: str | None) -> Tensor:
            values: Tensor = getattr(self, name)[first[table] : end[table]]
            return values if refers_to is None else values.sub(bases[refers_to]).clamp_min(-1)

        before = {table: counts[student_rows.start : student_rows.stop + 1] for table, counts in self.before.items()}
        return Positions(
            before={table: counts - first[table] for table, counts in before.items()},
            **{name: part(name, *relation) for name, relation in _COLUMNS.items()},
        )

    def count(self, table: str) -> int:
        """Entries of a table."""
        return int(self.before[table][-1])


_COLUMNS: dict[str, _Column] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Positions, include_extras=True).items()
    if get_origin(hint) is Annotated
}


@dataclass
class PrefixPlan(LossPlan):
    """All positions of a batch.

    Attributes:
        boundary: Those at which both sides begin a token.
        inside: Those inside a teacher token.
    """

    boundary: Positions
    inside: Positions

    def cut(self, student_rows: slice, teacher_rows: slice) -> PrefixPlan:
        """That of some rows."""
        boundary, inside = (part.cut(student_rows, teacher_rows) for part in (self.boundary, self.inside))
        return PrefixPlan(np.maximum(self.reach[student_rows] - teacher_rows.start, 0), boundary, inside)
