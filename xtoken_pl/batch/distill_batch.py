"""The batch of a training step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from xtoken_pl.batch.blocks import RowCuts
from xtoken_pl.batch.movable import Movable
from xtoken_pl.batch.prompts import Prompt
from xtoken_pl.batch.types import Planner, TeacherBatch, TokenBatch


@dataclass
class StepCounts(Movable):
    """Tokens and spans of a whole optimizer step on this process: what the losses of its batches are divided by.

    Attributes:
        num_tokens: Number of student rows of all batches of the step.
        num_spans: Number of spans of all of them, by teacher.
        num_of_kinds: ``[4]`` number of these spans of each kind (:data:`xtoken_pl.batch.SPAN_KINDS`), by teacher.
        place: Place of this batch in the step, counted from 0.
        num_batches: Number of batches of the step.
        prompts: Prompts of every batch of the step, see :class:`DistillBatch`, with its first batch only; None for data
            without prompts.
    """

    num_tokens: int
    num_spans: dict[str, int]
    num_of_kinds: dict[str, Tensor] = field(compare=False)  # tensors have no truth value
    place: int = 0
    num_batches: int = 1
    prompts: list[list[Prompt | None]] | None = None

    @property
    def is_first(self) -> bool:
        """Whether the step begins with this batch."""
        return self.place == 0

    @property
    def is_last(self) -> bool:
        """Whether the step ends with this batch."""
        return self.place == self.num_batches - 1

    def span_weight(self, teacher: str, kind_weights: Tensor | None) -> Tensor | int:
        """Returns the sum of the weights of a teacher's spans.

        Args:
            teacher: Name of the teacher.
            kind_weights: ``[4]`` weight of each kind of span; None if all of them are 1.
        """
        if kind_weights is None:
            return self.num_spans[teacher]
        return (kind_weights * self.num_of_kinds[teacher]).sum()


@dataclass
class DistillBatch(Movable):
    """The sequences of the student and of each teacher, and how their rows may be cut into blocks.

    Attributes:
        student: The student's sequences, with a row for every token that the loss mask selects and that has a
            predecessor.
        teachers: View of the batch by teacher name; without a sequence for a teacher that teaches on none.
        cuts: Places at which the rows may be cut.
        step: Counts of the optimizer step that the batch is a part of; None if it is a step by itself.
        domain: ``[B]`` index of the domain (:class:`xtoken_pl.batch.Domain`) of each student sequence; None: all are 0.
        prompts: Prompt of each row, which the student may write from instead, None for a row that has none; None for
            data without prompts.
        is_rollout: Whether the student wrote the text, which then has no cross-entropy.
    """

    student: TokenBatch
    teachers: dict[str, TeacherBatch]
    cuts: RowCuts
    step: StepCounts | None = None
    domain: Tensor | None = None
    prompts: list[Prompt | None] | None = None
    is_rollout: bool = False

    @property
    def row_sequence(self) -> Tensor:
        """``[N]`` sequence that each student row is in."""
        return self.student.rows // self.student.input_ids.shape[1]

    @property
    def sequence_domain(self) -> Tensor:
        """``[B]`` domain of each of the student's sequences."""
        sequences = self.student.input_ids
        return sequences.new_zeros(len(sequences)) if self.domain is None else self.domain

    @property
    def row_domain(self) -> Tensor:
        """``[N]`` domain that each student row is in."""
        return self.sequence_domain[self.row_sequence]

    def only(self, names: Collection[str]) -> DistillBatch:
        """Returns the batch with the views of some teachers alone; its rows may be cut at the same places."""
        spans, rows = ({name: each[name] for name in names} for each in (self.cuts.spans, self.cuts.teacher))
        cuts = replace(self.cuts, spans=spans, teacher=rows)
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

    @property
    def step_counts(self) -> StepCounts:
        """Counts of the optimizer step, those of this batch alone if it is a step by itself."""
        return self.step or as_steps([self])[0]


def as_steps(batches: Sequence[DistillBatch]) -> list[StepCounts]:
    """Returns the counts of one optimizer step for each of its batches."""
    num_spans: Counter[str] = Counter()
    num_of_kinds: dict[str, Tensor] = {}
    for batch in batches:
        for name, view in batch.teachers.items():
            num_spans[name] += len(view.spans)
            num_of_kinds[name] = num_of_kinds.get(name, 0) + view.spans.count_kinds()
    num_tokens = sum(len(batch.student.labels) for batch in batches)
    places = range(len(batches))
    steps = [StepCounts(num_tokens, dict(num_spans), num_of_kinds, place, len(batches)) for place in places]
    prompts = [batch.prompts for batch in batches if batch.prompts is not None]
    if len(prompts) == len(batches):
        steps[0].prompts = prompts
    return steps
