"""What the byte-prefix KL reads of a batch, in tables that are cut to the rows of a block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch import LossPlan, Movable

# N student rows, R positions, L levels, G segments, X inherited packets of mass


#: Of every column its table, and what its entries are indices of (-1 for none), where they depend on the batch.
_COLUMNS: dict[str, tuple[str, str | None]] = {
    "row": ("positions", "student"),
    "teacher": ("positions", "teacher"),
    "own": ("positions", None),
    "taken": ("positions", None),
    "consumed": ("positions", None),
    "low": ("positions", None),
    "high": ("positions", None),
    "level_position": ("levels", "positions"),
    "level_teacher": ("levels", "teacher"),
    "residual_segment": ("levels", "segments"),
    "residual_column": ("levels", None),
    "last_segment": ("levels", "segments"),
    "last_column": ("levels", None),
    "segment_level": ("segments", "levels"),
    "segment_token": ("segments", None),
    "segment_start": ("segments", None),
    "segment_length": ("segments", None),
    "inherited_segment": ("inherited", "segments"),
    "inherited_teacher": ("inherited", "teacher"),
    "inherited_token": ("inherited", None),
}


@dataclass
class Positions(Movable):
    """Student positions of one kind, and how the observed path of teacher tokens divides the members behind them.

    A *position* is a student row at which the teacher's distributions are known. Its *columns* are what their mass is
    gathered in: groups of student tokens with the same leading teacher token at a boundary that both sides share,
    student tokens inside a teacher token. A *level* is a node on the observed path, together with the teacher
    row that tells what follows it. Its members are divided into *segments*: neighbours that end there, or go on with
    the same teacher token.

    Attributes:
        before: By table, ``[N + 1]`` entries of the student rows before each row; kept on the host. Besides the tables
            of columns, ``members`` and ``extending`` count those of segments and between ``low`` and ``high``.
        row: ``[R]`` student rows, increasing.
        teacher: ``[R]`` the row of the teacher token that the position lies in, or begins with.
        own: ``[R]`` the column of the observed teacher token's mass; -1 where levels divide it, or it has none.
        taken: ``[R]`` at a boundary, the column that levels divide.
        consumed: ``[R]`` bytes of the teacher token that are there already.
        low, high: ``[R]`` inside, the teacher tokens that begin with these bytes, in the map's order.
        level_position: ``[L]``.
        level_teacher: ``[L]`` the row of what follows the level's node.
        residual_segment, residual_column: ``[L]`` what gets the mass of teacher tokens that no member goes on with.
        last_segment, last_column: ``[L]`` what gets the mass of the path's last token; both -1 where it goes on.
        segment_level: ``[G]``.
        segment_token: ``[G]`` the teacher token that a segment goes on with, -1 where its mass comes from elsewhere.
        segment_start, segment_length: ``[G]`` its members.
        inherited_segment: ``[X]`` at a boundary, what gets the mass of a teacher token that leads no student token.
        inherited_teacher, inherited_token: ``[X]`` the row and the token.
    """

    before: dict[str, NDArray[np.int64]]
    row: Tensor
    teacher: Tensor
    own: Tensor
    taken: Tensor
    consumed: Tensor
    low: Tensor
    high: Tensor
    level_position: Tensor
    level_teacher: Tensor
    residual_segment: Tensor
    residual_column: Tensor
    last_segment: Tensor
    last_column: Tensor
    segment_level: Tensor
    segment_token: Tensor
    segment_start: Tensor
    segment_length: Tensor
    inherited_segment: Tensor
    inherited_teacher: Tensor
    inherited_token: Tensor

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
        return PrefixPlan(self.reach[student_rows] - teacher_rows.start, boundary, inside)
