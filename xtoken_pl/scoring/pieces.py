"""Shows the losses the rows of a piece, and takes their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from xtoken_pl.batch import Block
from xtoken_pl.losses.base import SideRows, SpanBlock, SpanScores
from xtoken_pl.scoring.tasks import HiddenRows, TeacherTask, local_spans

# P rows of a piece, S spans, H hidden size, V_s/V_t vocabulary sizes (student/teacher)


class StudentLeaves(NamedTuple):
    """What losses read of a piece's student rows, or the gradients of it.

    Attributes:
        log_probs: ``[P, V_s]``.
        hidden: ``[P, H]``, None where no loss reads hidden states.
    """

    log_probs: Tensor
    hidden: Tensor | None

    def gradients(self, total: Tensor, parameters: Iterable[Tensor] = ()) -> tuple[StudentLeaves, list[Tensor]]:
        """The gradients of a scalar in these leaves and in parameters; zeros where it does not depend on them."""
        leaves = [leaf for leaf in self if leaf is not None]
        total = total + self.log_probs[:, :0].sum()  # a loss may have no gradient
        grads = torch.autograd.grad(total, [*leaves, *parameters], allow_unused=True, materialize_grads=True)
        hidden = None if self.hidden is None else grads[1]
        return StudentLeaves(grads[0], hidden), list(grads[len(leaves) :])


@dataclass(frozen=True)
class PieceScorer:
    """Scores the spans of a piece with the loss of each teacher."""

    student: HiddenRows
    teachers: Mapping[str, TeacherTask]

    def leaves(self, piece: Block, log_probs: Tensor, teachers: Iterable[str]) -> StudentLeaves:
        """Leaves of a piece; they require a gradient where gradients are enabled.

        Args:
            piece: The piece.
            log_probs: ``[P, V_s]`` of its student rows; the leaf has the same memory.
            teachers: Teachers whose losses are to read them.
        """
        reads = any(self.teachers[name].loss.needs_hidden_states for name in teachers)
        needs_grad = torch.is_grad_enabled()  # a loss may take a shorter way without
        hidden = self.student.states(piece.student_rows).requires_grad_(needs_grad) if reads else None
        return StudentLeaves(log_probs.detach().requires_grad_(needs_grad), hidden)

    def score(self, name: str, piece: Block, student: StudentLeaves, teacher: SideRows) -> SpanScores:
        """The scores of a piece's spans by one teacher's loss."""
        task, spans = self.teachers[name], piece.spans[name]
        log_probs = student.log_probs
        side = SideRows(
            log_probs=log_probs if task.temperature == 1.0 else (log_probs / task.temperature).log_softmax(-1),
            labels=self.student.labels[piece.student_rows],
            first=task.spans.student_first[spans] - piece.student_rows.start,
            length=task.spans.student_length[spans],
            span=local_spans(task.spans.student_span[piece.student_rows], spans),
            hidden=student.hidden if task.loss.needs_hidden_states else None,
        )
        plan = None if task.plan is None else task.plan.cut(piece.student_rows, piece.teacher_rows[name])
        result: SpanScores = task.loss(SpanBlock(side, teacher, plan))
        return result._replace(loss=result.loss * task.temperature**2)
