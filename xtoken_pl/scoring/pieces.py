"""Shows the losses the rows of a piece, and takes their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xtoken_pl.batch import Block
from xtoken_pl.losses.base import SideRows, SpanBlock, SpanScores
from xtoken_pl.scoring.tasks import HiddenRows, TeacherTask, local_spans

# P rows of a piece, S spans, H hidden size, V_s/V_t vocabulary sizes (student/teacher)


@dataclass(frozen=True)
class StudentLeaves:
    """A piece's student rows as the losses read them: leaves of their gradients.

    Attributes:
        labels: ``[P]`` observed tokens.
        log_probs: ``[P, V_s]`` log-probabilities.
        hidden: ``[P, H]`` hidden states, None if no loss reads them.
    """

    labels: Tensor
    log_probs: Tensor
    hidden: Tensor | None

    @classmethod
    def from_piece(
        cls, student: HiddenRows, piece: Block, log_probs: Tensor, tasks: Iterable[TeacherTask]
    ) -> StudentLeaves:
        """Makes the leaves of a piece; they require a gradient where gradients are enabled.

        Args:
            student: All student rows.
            piece: The piece.
            log_probs: ``[P, V_s]`` of its student rows; the leaf has the same memory.
            tasks: Tasks whose losses are to read the leaves.
        """
        rows, needs_grad = piece.student_rows, torch.is_grad_enabled()  # a loss may take a shorter way without
        reads = any(task.loss.needs_hidden_states for task in tasks)
        hidden = student.states(rows).requires_grad_(needs_grad) if reads else None
        return cls(student.labels[rows], log_probs.detach().requires_grad_(needs_grad), hidden)

    def score(self, name: str, task: TeacherTask, piece: Block, teacher: SideRows) -> SpanScores:
        """Scores the piece's spans with the loss of one teacher."""
        rows, spans = piece.student_rows, piece.spans[name]
        tempered = (self.log_probs / task.temperature).log_softmax(-1) if task.temperature != 1.0 else self.log_probs
        side = SideRows(
            log_probs=tempered,
            labels=self.labels,
            first=task.spans.student_first[spans] - rows.start,
            length=task.spans.student_length[spans],
            span=local_spans(task.spans.student_span[rows], spans),
            hidden=self.hidden if task.loss.needs_hidden_states else None,
        )
        plan = None if task.plan is None else task.plan.cut(rows, piece.teacher_rows[name])
        result: SpanScores = task.loss(SpanBlock(side, teacher, plan))
        return result._replace(loss=result.loss * task.temperature**2)

    def gradients(
        self, total: Tensor, parameters: Iterable[Tensor] = ()
    ) -> tuple[Tensor, Tensor | None, Sequence[Tensor]]:
        """The gradients of a scalar in log_probs, hidden and parameters; zeros where it does not depend on them."""
        total = total + self.log_probs[:, :0].sum()  # a loss may have no gradient
        hidden = [] if self.hidden is None else [self.hidden]
        leaves = [self.log_probs, *hidden, *parameters]
        grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        return grads[0], grads[1] if hidden else None, grads[1 + len(hidden) :]
