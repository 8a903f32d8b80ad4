"""The batch of a training step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from xtoken_pl.batch.blocks import RowCuts
from xtoken_pl.batch.movable import Movable
from xtoken_pl.batch.types import Planner, TeacherBatch, TokenBatch


@dataclass
class DistillBatch(Movable):
    """The sequences of the student and of each teacher, and how their rows may be cut into blocks.

    Attributes:
        student: The student's sequences, with a row for every token that the loss mask selects and that has a
            predecessor.
        teachers: View of the batch by teacher name.
        cuts: Places at which the rows may be cut.
    """

    student: TokenBatch
    teachers: dict[str, TeacherBatch]
    cuts: RowCuts

    def only(self, names: Collection[str]) -> DistillBatch:
        """Returns the batch with the views of some teachers alone; its rows may be cut at the same places."""
        student, spans, rows = self.cuts.student, self.cuts.spans, self.cuts.teacher
        cuts = RowCuts(student, {name: spans[name] for name in names}, {name: rows[name] for name in names})
        return replace(self, teachers={name: self.teachers[name] for name in names}, cuts=cuts)

    def planned(self, planners: Mapping[str, Planner]) -> DistillBatch:
        """Returns the batch with loss plans added, and with only those cuts that all plans allow.

        Args:
            planners: Planners by teacher name. Existing plans are not replaced.
        """
        wanted = [name for name in planners if name in self.teachers and self.teachers[name].plan is None]
        if not wanted:
            return self
        plans = {name: planners[name](self.student, self.teachers[name]) for name in wanted}
        teachers = {name: replace(view, plan=plans.get(name, view.plan)) for name, view in self.teachers.items()}
        known = {name: view.plan for name, view in teachers.items() if view.plan is not None}
        spans = {name: view.spans for name, view in teachers.items()}
        cuts = RowCuts.from_spans(len(self.student.labels), spans, known)
        # Plans are made on the host.
        return replace(self, teachers=teachers, cuts=cuts).to(self.student.labels.device)
