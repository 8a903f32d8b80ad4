"""Evaluates cross-entropy and all teachers' losses block by block, from hidden states.

Full logits are never held: a block's logits exist inside a checkpointed function and are computed again for the
backward pass, so that the peak memory does not grow with batch x length x vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from xtoken_pl.batch import Block, SpanBatch
from xtoken_pl.losses.base import SideRows, SpanBlock, SpanLoss, SpanScores
from xtoken_pl.models.head import Head

# N/Q student/teacher rows, S spans, H hidden size, V_s/V_t vocabulary sizes (student/teacher)

#: How sure a teacher is: log-probabilities [Q, V_t] and the tokens [Q] that they predict in, a number per row [Q] out.
RowConfidence = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class HiddenRows:
    """One side's rows before the head: hidden states ``[N, H]``, the tokens ``[N]`` that they predict, the head."""

    hidden: Tensor
    labels: Tensor
    head: Head


@dataclass(frozen=True)
class TeacherTask:
    """What is computed for one teacher: its loss and, where a weighting asks for it, its confidence."""

    rows: HiddenRows
    spans: SpanBatch
    loss: SpanLoss
    temperature: float = 1.0
    confidence: RowConfidence | None = None


@dataclass(frozen=True)
class RowScores:
    """What is known of a batch, or of a block of it.

    Attributes:
        token_nats: ``[N]`` cross-entropy of every student row.
        spans: By teacher, the scores of every span.
        confidence: By teacher, ``[S]``: the confidence of the rows of every span, summed; only where it was asked for.
    """

    token_nats: Tensor
    spans: dict[str, SpanScores]
    confidence: dict[str, Tensor]


def evaluate_rows(student: HiddenRows, teachers: Mapping[str, TeacherTask], blocks: Sequence[Block]) -> RowScores:
    """Scores all rows and spans of a batch.

    Args:
        student: All student rows.
        teachers: By name.
        blocks: Of :meth:`xtoken_pl.batch.RowCuts.blocks`; the results do not depend on how the rows are cut.

    Returns:
        Vectors, so that weights and scales are applied, and gradients stopped, outside.
    """
    keep_logits = not torch.is_grad_enabled()
    results = [
        _evaluate_block(student, teachers, block)
        if keep_logits
        else checkpoint(_evaluate_block, student, teachers, block, use_reentrant=False, preserve_rng_state=False)
        for block in blocks
    ]
    if not results:
        # No row at all: an empty block keeps the zero loss connected to the parameters.
        results = [_evaluate_block(student, teachers, _empty_block(teachers))]
    return RowScores(
        token_nats=torch.cat([block.token_nats for block in results]),
        spans={name: _concatenate([block.spans[name] for block in results]) for name in teachers},
        confidence={name: torch.cat([block.confidence[name] for block in results]) for name in results[0].confidence},
    )


def _evaluate_block(student: HiddenRows, teachers: Mapping[str, TeacherTask], block: Block) -> RowScores:
    rows = block.student_rows
    log_probs = student.head.log_probs(student.hidden[rows])  # [P, V_s]
    labels = student.labels[rows]
    token_nats = -log_probs.gather(1, labels[:, None]).squeeze(1)
    scores: dict[str, SpanScores] = {}
    confidence: dict[str, Tensor] = {}
    for name, task in teachers.items():
        teacher_rows, spans = block.teacher_rows[name], block.spans[name]
        with torch.no_grad():
            teacher_log_probs = task.rows.head.log_probs(task.rows.hidden[teacher_rows], task.temperature)
        num_spans = spans.stop - spans.start
        span_block = SpanBlock(
            student=SideRows(
                log_probs=log_probs if task.temperature == 1.0 else (log_probs / task.temperature).log_softmax(-1),
                labels=labels,
                first=task.spans.student_first[spans] - rows.start,
                length=task.spans.student_length[spans],
                span=(task.spans.student_span[rows] - spans.start).clamp(max=num_spans),
            ),
            teacher=SideRows(
                log_probs=teacher_log_probs,
                labels=task.rows.labels[teacher_rows],
                first=task.spans.teacher_first[spans] - teacher_rows.start,
                length=task.spans.teacher_length[spans],
                span=(task.spans.teacher_span[teacher_rows] - spans.start).clamp(max=num_spans),
            ),
        )
        result = task.loss(span_block)
        scores[name] = result._replace(loss=result.loss * task.temperature**2)
        if task.confidence is not None:
            with torch.no_grad():
                confidence[name] = span_block.teacher.sum_by_span(
                    task.confidence(_untempered(teacher_log_probs, task.temperature), span_block.teacher.labels)
                )
    return RowScores(token_nats, scores, confidence)


def _untempered(log_probs: Tensor, temperature: float) -> Tensor:
    """The distribution at temperature 1: what the teacher believes, whatever the loss compares."""
    return log_probs if temperature == 1.0 else (log_probs * temperature).log_softmax(-1)


def _empty_block(teachers: Mapping[str, TeacherTask]) -> Block:
    nothing = slice(0, 0)
    return Block(nothing, dict.fromkeys(teachers, nothing), dict.fromkeys(teachers, nothing))


def _concatenate(parts: list[SpanScores]) -> SpanScores:
    agreements = [part.agreement for part in parts if part.agreement is not None]
    return SpanScores(
        loss=torch.cat([part.loss for part in parts]),
        unmapped_mass=torch.cat([part.unmapped_mass for part in parts]),
        agreement=torch.cat(agreements) if agreements else None,
    )
