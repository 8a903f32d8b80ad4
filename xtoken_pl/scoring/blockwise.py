"""Evaluates cross-entropy and all teachers' losses block by block, from hidden states.

Full logits are never held: those of a block exist while it is scored. The weights of the losses are known only when
all blocks are scored (the scale of KD is L_CE / L_KD), so that the gradient needs a second pass: from what the memory
budget had room to keep, or from logits that are computed again; those of the last block are still there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from xtoken_pl.batch import RowCuts
from xtoken_pl.scoring.evaluation import Evaluation
from xtoken_pl.scoring.memory import LogitMemory
from xtoken_pl.scoring.shares import Shares
from xtoken_pl.scoring.tasks import HiddenRows, RowScores, TeacherTask


def evaluate_rows(
    student: HiddenRows,
    teachers: Mapping[str, TeacherTask],
    cuts: RowCuts,
    memory: LogitMemory,
    group: ProcessGroup | None = None,
) -> RowScores:
    """Scores all rows and spans of a batch.

    Args:
        student: All student rows.
        teachers: Tasks by teacher name.
        cuts: Places at which the rows may be cut; the results do not depend on them.
        memory: Memory for logits and what losses derive from them; see :class:`xtoken_pl.scoring.memory.BlockSizes`.
        group: Processes that have the same rows, and share the work; see :mod:`xtoken_pl.scoring.shares`.

    Returns:
        Vectors, so that weights and scales are applied, and gradients stopped, outside.
    """
    evaluation = Evaluation(student, teachers, cuts, memory, Shares(group))
    if not evaluation.is_differentiable:
        return evaluation.score()
    results: list[RowScores] = []
    token_nats, *losses = _Differentiable.apply(evaluation, results, *evaluation.inputs)
    (scores,) = results
    spans = zip(scores.spans.items(), losses, strict=True)
    return replace(scores, token_nats=token_nats, spans={name: s._replace(loss=loss) for (name, s), loss in spans})


class _Differentiable(torch.autograd.Function):
    """The two passes of an evaluation, as autograd sees them."""

    @staticmethod
    def forward(ctx: Any, evaluation: Evaluation, results: list[RowScores], *inputs: Tensor | None) -> Any:
        scores = evaluation.score()
        results.append(scores)
        ctx.evaluation = evaluation
        ctx.save_for_backward(*inputs)
        return scores.token_nats.clone(), *(spans.loss.clone() for spans in scores.spans.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token_nats: Tensor, *losses: Tensor) -> tuple[Any, ...]:
        _ = ctx.saved_tensors  # refuses inputs that were changed in place since
        return None, None, *ctx.evaluation.gradients(token_nats, losses, ctx.needs_input_grad[2:])
