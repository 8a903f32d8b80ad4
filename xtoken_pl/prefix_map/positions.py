"""What the byte-prefix KL reads of a batch, in tables that are cut to the rows of a block."""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch import LossPlan, Movable

# N student rows, R positions, L levels, G segments, X inherited packets of mass


def _column(table: str, refers_to: str | None = None) -> Any:
    """A column of a table; its entries are indices into ``refers_to`` (-1 for none), or independent of the batch."""
    return field(metadata={"table": table, "refers_to": refers_to})


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
    row: Tensor = _column("positions", "student")
    teacher: Tensor = _column("positions", "teacher")
    own: Tensor = _column("positions")
    taken: Tensor = _column("positions")
    consumed: Tensor = _column("positions")
    low: Tensor = _column("positions")
    high: Tensor = _column("positions")
    level_position: Tensor = _column("levels", "positions")
    level_teacher: Tensor = _column("levels", "teacher")
    residual_segment: Tensor = _column("levels", "segments")
    residual_column: Tensor = _column("levels")
    last_segment: Tensor = _column("levels", "segments")
    last_column: Tensor = _column("levels")
    segment_level: Tensor = _column("segments", "levels")
    segment_token: Tensor = _column("segments")
    segment_start: Tensor = _column("segments")
    segment_length: Tensor = _column("segments")
    inherited_segment: Tensor = _column("inherited", "segments")
    inherited_teacher: Tensor = _column("inherited", "teacher")
    inherited_token: Tensor = _column("inherited")

    def cut(self, student_rows: slice, teacher_rows: slice) -> Positions:
        """Those of some student rows, with indices counted from the first of them and of the teacher rows."""
        first = {table: int(before[student_rows.start]) for table, before in self.before.items()}
        end = {table: int(before[student_rows.stop]) for table, before in self.before.items()}
        bases = {**first, "student": student_rows.start, "teacher": teacher_rows.start}

        def part(item: Field[Any]) -> Tensor:
            table, refers_to = item.metadata["table"], item.metadata["refers_to"]
            values: Tensor = getattr(self, item.name)[first[table] : end[table]]
            return values if refers_to is None else values.sub(bases[refers_to]).clamp_min(-1)

        before = {table: counts[student_rows.start : student_rows.stop + 1] for table, counts in self.before.items()}
        columns = {item.name: part(item) for item in fields(self) if item.metadata}
        return Positions(**columns, before={table: counts - first[table] for table, counts in before.items()})

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
