"""Gradients of losses in the student's logits, for monitoring: training never needs them as a whole.

A head that is a table of logits makes them reachable through the interface that training uses: the hidden state of a
row is the unit vector that picks its logits, and the gradient of the head's weight is that of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from xtoken_pl.batch import DistillBatch, RowCuts
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.tasks import HiddenRows, RowScores, TeacherTask

# N student rows, K of them, S spans, V_s vocabulary size


def rows_in_spans(batch: DistillBatch, wanted: Tensor) -> Tensor:
    """Adds to the wanted rows all rows of the spans that hold one of them, ``[N] -> [N]`` bool.

    A row that comes in by a span of one teacher may lie in a span of another that is not whole: gradients are right at
    the wanted rows alone.
    """
    rows = wanted
    for view in batch.teachers.values():
        holds = view.spans.sum_student_rows(wanted.long()) > 0  # [S]
        rows = rows | torch.cat((holds, holds.new_zeros(1)))[view.spans.student_span]
    return rows


class LogitGradients:
    """Takes gradients of losses in the logits of some rows.

    The losses are evaluated as in a training step, over all rows, within a memory budget; beside it there are the
    logits ``[K, V_s]``, a gradient of their size, and the unit vectors ``[N, K]``.

    Args:
        rows: ``[K]`` student rows, increasing. A teacher's gradient is right at the rows whose span has all its rows
            among them.
        logits: ``[K, V_s]`` logits of these rows; all other rows have logits of zero.
        student: All student rows, of which the labels and the head's vocabulary count. A loss that reads hidden states
            gets theirs, which have no part in the gradient.
        cuts: Places at which the rows may be cut.
        memory: Memory for logits and what losses derive from them.
    """

    def __init__(self, rows: Tensor, logits: Tensor, student: HiddenRows, cuts: RowCuts, memory: LogitMemory) -> None:
        self.cuts, self.memory = cuts, memory
        dtype = torch.promote_types(logits.dtype, torch.float32)
        with torch.inference_mode(mode=False):  # autograd keeps no tensor that was made in it
            layer = nn.Linear(1, 1, bias=False, device="meta")
            layer.weight = nn.Parameter(logits.detach().to(dtype, copy=True).t())  # [V_s, K]
            units = layer.weight.new_zeros(len(student.labels), len(rows))  # [N, K]
            units[rows, torch.arange(len(rows), device=rows.device)] = 1.0
            head = replace(student.head, layer=layer)
            states = student.hidden.detach().clone()
            self.student = HiddenRows(units, student.labels.clone(), head, model_hidden=states)

    def of_cross_entropy(self) -> Tensor:
        """Gradient of each row's cross-entropy, ``[K, V_s]``."""
        return self._of({}, lambda scores: scores.token_nats)

    def of_teacher(self, name: str, task: TeacherTask) -> Tensor:
        """Gradient of the loss of the span that holds each row, ``[K, V_s]``; zero for a row in no span.

        Args:
            name: Name of the teacher in the cuts.
            task: The teacher's task; its spans and plan must not have been made in inference mode.
        """
        # Each row is in one span at most, so that the sum over spans has the gradient of the row's own span.
        return self._of({name: task}, lambda scores: scores.spans[name].loss)

    def _of(self, teachers: Mapping[str, TeacherTask], losses: Callable[[RowScores], Tensor]) -> Tensor:
        cuts = replace(
            self.cuts,
            spans={name: self.cuts.spans[name] for name in teachers},
            teacher={name: self.cuts.teacher[name] for name in teachers},
        )
        weight = self.student.head.layer.weight
        # Products in half precision would round the gradient.
        full_precision = torch.autocast(weight.device.type, enabled=False)
        with torch.inference_mode(mode=False), torch.enable_grad(), full_precision:
            total = losses(evaluate_rows(self.student, teachers, cuts, self.memory)).sum()
            (gradient,) = torch.autograd.grad(total, weight)
        return gradient.t()
