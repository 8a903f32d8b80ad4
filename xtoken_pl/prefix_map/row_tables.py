"""Tables that belong to student rows, and how they are cut to the rows of a block."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, NamedTuple, Self, cast, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch import Movable

# N student rows


class Column(NamedTuple):
    """The table of a column, and the table or side that its entries index (-1 for none) if they are indices."""

    table: str
    refers_to: str | None = None


@dataclass
class RowTables(Movable):
    """Base of dataclasses whose tensors are columns of tables, each annotated with its :class:`Column`.

    The entries of a table are in the order of the student rows that they belong to.

    Attributes:
        before: ``[N + 1]`` entries of each table before each student row, by table name; stays on the CPU.
    """

    before: dict[str, NDArray[np.int64]]

    def cut(self, student_rows: slice, teacher_rows: slice) -> Self:
        """Returns the tables of the given student rows; indices count from the first student and teacher row."""
        first = {table: int(before[student_rows.start]) for table, before in self.before.items()}
        end = {table: int(before[student_rows.stop]) for table, before in self.before.items()}
        bases = {**first, "student": student_rows.start, "teacher": teacher_rows.start}

        def part(name: str, table: str, refers_to: str | None) -> Tensor:
            values: Tensor = getattr(self, name)[first[table] : end[table]]
            return values if refers_to is None else values.sub(bases[refers_to]).clamp_min(-1)

        before = {table: counts[student_rows.start : student_rows.stop + 1] for table, counts in self.before.items()}
        return type(self)(
            before={table: counts - first[table] for table, counts in before.items()},
            **{name: part(name, *relation) for name, relation in _columns(cast(Hashable, type(self))).items()},
        )

    @classmethod
    def column_names(cls) -> list[str]:
        """Names of the columns of all tables."""
        return list(_columns(cast(Hashable, cls)))

    def count(self, table: str) -> int:
        """Number of entries of a table."""
        return int(self.before[table][-1])


@cache
def _columns(kind: Hashable) -> dict[str, Column]:
    return {
        name: hint.__metadata__[0]
        for name, hint in get_type_hints(kind, include_extras=True).items()
        if get_origin(hint) is Annotated
    }


def entries_before(owner: dict[str, NDArray[np.int64]], num_rows: int) -> dict[str, NDArray[np.int64]]:
    """``[N + 1]`` entries of each table before each of ``num_rows`` student rows.

    Args:
        owner: The student row of each entry, by table name; non-decreasing.
    """
    return {table: np.searchsorted(rows, np.arange(num_rows + 1)) for table, rows in owner.items()}
