"""Tables that the byte-prefix KL reads for a batch, and how they are cut to the rows of a block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch import LossPlan
from xtoken_pl.prefix_map.row_tables import Column, RowTables

# N student rows, R positions, Z open ones, L levels, G branches, X inherited packets of mass, Y excluded tokens
# A starts, E shares


@dataclass
class Positions(RowTables):
    """Student positions of one kind, and how the observed teacher tokens that follow divide their members.

    A *position* is a student row at which the teacher's distributions are known. Their mass is gathered in *columns*:
    groups of student tokens with the same leading teacher token for a position at a boundary that both sides share,
    single student tokens for a position inside a teacher token. A *level* is a node on the observed path, together with
    the teacher row that predicts the next token. Its members are divided into *branches*: neighbours that end there, or
    continue with the same teacher token. Positions are *open* where the teacher's token before them may have ended or
    may go on.

    Attributes:
        before: ``[N + 1]`` entries of each table before each student row, by table name; stays on the CPU. Besides the
            tables of columns, ``members`` counts members of branches, ``extending`` tokens from ``low`` to ``high``,
            and ``ended`` those from ``ended_low`` to ``low``.
        row: ``[R]`` student rows, increasing.
        teacher: ``[R]`` row of the teacher token that the position lies in, or begins with.
        observed_column: ``[R]`` column of the observed teacher token's mass; -1 if levels divide it, or there is none.
        divided_column: ``[R]`` column that levels divide, at a boundary; otherwise -1.
        consumed: ``[R]`` bytes of the teacher token before the position: of the one that it lies in, or at an open
            boundary of the one that ends there, which the row before ``teacher`` predicts.
        low, high: ``[R]`` range, in the map's order, of the teacher tokens that begin with these bytes and are longer,
            inside and at an open boundary.
        open_position: ``[Z]`` open positions.
        ended_low: ``[Z]`` start of the range, in the map's order, of the teacher tokens that are these bytes, if
            inside; it ends at ``low``.
        level_position: ``[L]`` position of each level.
        level_teacher: ``[L]`` teacher row that predicts the token after the level's node.
        level_node: ``[L]`` the node in the map's trie.
        residual_branch, residual_column: ``[L]`` receiver of the mass of teacher tokens with which no member continues.
        last_branch, last_column: ``[L]`` receiver of the mass of the path's last token; both -1 if the path continues.
        branch_level: ``[G]`` level of each branch.
        branch_token: ``[G]`` teacher token with which a branch continues, -1 if its mass comes from elsewhere.
        branch_start, branch_length: ``[G]`` range of the branch's members.
        heir_branch: ``[X]`` receiver of the mass of a teacher token that leads no student token, at a boundary.
        heir_teacher, heir_token: ``[X]`` row and id of that teacher token.
        excluding: ``[R]`` bytes of the student's last token if it excludes teacher tokens of the range, those whose
            bytes from its first one on are one student token; otherwise 0.
        excluded_position, excluded_token: ``[Y]`` teacher tokens that cannot follow the student's last token, at a
            boundary.
        start_position, start_token: ``[A]`` position of each *start*, a teacher token that the text does not have and
            whose group the teacher's own continuation divides (see :class:`xtoken_pl.prefix_map.Lookahead`).
        start_teacher, start_level: ``[A]`` row that predicts the token, and its level, -1 at the position itself.
        start_column: ``[A]`` column that the start divides, -1 at a level.
        share_start: ``[E]`` start of each part of its mass.
        share_branch, share_column: ``[E]`` receiver of the part.
        share: ``[E]`` the part, of all of the start's mass.
    """

    row: Annotated[Tensor, Column("positions", "student")]
    teacher: Annotated[Tensor, Column("positions", "teacher")]
    observed_column: Annotated[Tensor, Column("positions")]
    divided_column: Annotated[Tensor, Column("positions")]
    consumed: Annotated[Tensor, Column("positions")]
    low: Annotated[Tensor, Column("positions")]
    high: Annotated[Tensor, Column("positions")]
    open_position: Annotated[Tensor, Column("open", "positions")]
    ended_low: Annotated[Tensor, Column("open")]
    level_position: Annotated[Tensor, Column("levels", "positions")]
    level_teacher: Annotated[Tensor, Column("levels", "teacher")]
    level_node: Annotated[Tensor, Column("levels")]
    residual_branch: Annotated[Tensor, Column("levels", "branches")]
    residual_column: Annotated[Tensor, Column("levels")]
    last_branch: Annotated[Tensor, Column("levels", "branches")]
    last_column: Annotated[Tensor, Column("levels")]
    branch_level: Annotated[Tensor, Column("branches", "levels")]
    branch_token: Annotated[Tensor, Column("branches")]
    branch_start: Annotated[Tensor, Column("branches")]
    branch_length: Annotated[Tensor, Column("branches")]
    heir_branch: Annotated[Tensor, Column("heirs", "branches")]
    heir_teacher: Annotated[Tensor, Column("heirs", "teacher")]
    heir_token: Annotated[Tensor, Column("heirs")]
    excluding: Annotated[Tensor, Column("positions")]
    excluded_position: Annotated[Tensor, Column("excluded", "positions")]
    excluded_token: Annotated[Tensor, Column("excluded")]
    start_position: Annotated[Tensor, Column("starts", "positions")]
    start_teacher: Annotated[Tensor, Column("starts", "teacher")]
    start_token: Annotated[Tensor, Column("starts")]
    start_level: Annotated[Tensor, Column("starts", "levels")]
    start_column: Annotated[Tensor, Column("starts")]
    share_start: Annotated[Tensor, Column("shares", "starts")]
    share_branch: Annotated[Tensor, Column("shares", "branches")]
    share_column: Annotated[Tensor, Column("shares")]
    share: Annotated[Tensor, Column("shares")]


def no_starts() -> dict[str, NDArray[Any]]:
    """Makes the columns of starts and their shares for a plan without lookahead."""
    integers = ("start_position", "start_teacher", "start_token", "start_level", "start_column")
    parts = ("share_start", "share_branch", "share_column")
    none = np.zeros(0, dtype=np.int64)
    return {**dict.fromkeys((*integers, *parts), none), "share": np.zeros(0, dtype=np.float64)}


@dataclass
class PrefixPlan(LossPlan):
    """All positions of a batch.

    Attributes:
        boundary: Positions at which both sides begin a token.
        inside: Positions inside a teacher token.
    """

    reads_row_before = True

    boundary: Positions
    inside: Positions

    def with_boundary(self, boundary: Positions) -> PrefixPlan:
        """Returns the plan with other tables of the same positions at boundaries."""
        return replace(self, boundary=boundary)

    def cut(self, student_rows: slice, teacher_rows: slice) -> PrefixPlan:
        """Returns the plan of the given rows."""
        boundary, inside = (part.cut(student_rows, teacher_rows) for part in (self.boundary, self.inside))
        return PrefixPlan(np.maximum(self.reach[student_rows] - teacher_rows.start, 0), boundary, inside)
