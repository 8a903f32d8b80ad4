"""Tables that the byte-prefix KL reads for a batch, and how they are cut to the rows of a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch import LossPlan, Movable

# N student rows, R positions, L levels, G branches, X inherited packets of mass


class _Column(NamedTuple):
    """The table of a column, and the table or side that its entries index (-1 for none) if they are indices."""

    table: str
    refers_to: str | None = None


@dataclass
class Positions(Movable):
    """Student positions of one kind, and how the observed teacher tokens that follow divide their members.

    A *position* is a student row at which the teacher's distributions are known. Their mass is gathered in *columns*:
    groups of student tokens with the same leading teacher token for a position at a boundary that both sides share,
    single student tokens for a position inside a teacher token. A *level* is a node on the observed path, together with
    the teacher row that predicts the next token. Its members are divided into *branches*: neighbours that end there, or
    continue with the same teacher token.

    Attributes:
        before: ``[N + 1]`` entries of each table before each student row, by table name; stays on the CPU. Besides the
            tables of columns, ``members`` counts members of branches, and ``extending`` tokens from ``low`` to
            ``high``.
        row: ``[R]`` student rows, increasing.
        teacher: ``[R]`` row of the teacher token that the position lies in, or begins with.
        observed_column: ``[R]`` column of the observed teacher token's mass; -1 if levels divide it, or there is none.
        divided_column: ``[R]`` column that levels divide, at a boundary; otherwise -1.
        consumed: ``[R]`` bytes of the teacher token before the position.
        low, high: ``[R]`` range, in the map's order, of the teacher tokens that begin with these bytes, if inside.
        level_position: ``[L]`` position of each level.
        level_teacher: ``[L]`` teacher row that predicts the token after the level's node.
        residual_branch, residual_column: ``[L]`` receiver of the mass of teacher tokens with which no member continues.
        last_branch, last_column: ``[L]`` receiver of the mass of the path's last token; both -1 if the path continues.
        branch_level: ``[G]`` level of each branch.
        branch_token: ``[G]`` teacher token with which a branch continues, -1 if its mass comes from elsewhere.
        branch_start, branch_length: ``[G]`` range of the branch's members.
        heir_branch: ``[X]`` receiver of the mass of a teacher token that leads no student token, at a boundary.
        heir_teacher, heir_token: ``[X]`` row and id of that teacher token.
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
        """Returns the tables of the given student rows; indices count from the first student and teacher row."""
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
        """Number of entries of a table."""
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
        boundary: Positions at which both sides begin a token.
        inside: Positions inside a teacher token.
    """

    boundary: Positions
    inside: Positions

    def cut(self, student_rows: slice, teacher_rows: slice) -> PrefixPlan:
        """Returns the plan of the given rows."""
        boundary, inside = (part.cut(student_rows, teacher_rows) for part in (self.boundary, self.inside))
        return PrefixPlan(np.maximum(self.reach[student_rows] - teacher_rows.start, 0), boundary, inside)
