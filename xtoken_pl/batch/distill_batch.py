"""The batch of a training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from xtoken_pl.batch.blocks import RowCuts
from xtoken_pl.batch.movable import Movable
from xtoken_pl.batch.types import Planner, TeacherBatch, TokenBatch


@dataclass
class DistillBatch(Movable):
    """The student's sequences, each teacher's, and how their rows may be cut into blocks.

    Attributes:
        student: The rows cover every token that the loss mask keeps and that has a predecessor.
        teachers: By teacher name.
        cuts: Of the rows.
    """

    student: TokenBatch
    teachers: dict[str, TeacherBatch]
    cuts: RowCuts

    def planned(self, planners: Mapping[str, Planner]) -> DistillBatch:
        """The batch with the plans of losses that make one, and cut only where all of them allow it.

        Args:
            planners: By teacher. Plans that are there already stay.
        """
        wanted = [name for name in planners if name in self.teachers and self.teachers[name].plan is None]
        if not wanted:
            return self
        plans = {name: planners[name](self.student, self.teachers[name]) for name in wanted}
        teachers = {name: replace(view, plan=plans.get(name, view.plan)) for name, view in self.teachers.items()}
        known = {name: view.plan for name, view in teachers.items() if view.plan is not None}
        cuts = RowCuts.from_spans(
            len(self.student.labels), {name: view.spans for name, view in teachers.items()}, known
        )
        # Plans are made on the host.
        return replace(self, teachers=teachers, cuts=cuts).to(self.student.labels.device)
