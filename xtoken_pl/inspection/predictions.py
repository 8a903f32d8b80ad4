"""Predictions of the teachers and of the student at some spans, and the loss of each span."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xtoken_pl.batch import DistillBatch, SpanBatch
from xtoken_pl.inspection.tokens import Token, tokens_of
from xtoken_pl.scoring.blockwise import evaluate_rows
from xtoken_pl.scoring.tasks import HiddenRows, TeacherTask
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.training.module import MultiTeacherDistillModule

# S spans, K of them that are shown, V_s/V_t vocabulary sizes (student/teacher)


@dataclass(frozen=True)
class Candidate:
    """A token and its probability."""

    token: Token
    probability: float


@dataclass(frozen=True)
class SpanPrediction:
    """The most probable tokens of both sides at the start of a span, in order of probability.

    Attributes:
        student_start: Index of the span's first student token.
        teacher: Tokens that the teacher predicts.
        student: Tokens that the student predicts; teacher tokens if its probabilities are projected.
    """

    student_start: int
    teacher: list[Candidate]
    student: list[Candidate]


@dataclass(frozen=True)
class Predictions:
    """Predictions and losses at the spans of one teacher.

    Attributes:
        is_projected: Whether the student's probabilities went through W, to teacher tokens, as the loss compares them.
        losses: Nats, by the index of the span's first student token.
        spans: Predictions of the spans that are shown.
    """

    is_projected: bool
    losses: dict[int, float]
    spans: list[SpanPrediction]


@torch.no_grad()
def predict(
    module: MultiTeacherDistillModule, batch: DistillBatch, *, num_spans: int, top_k: int
) -> dict[str, Predictions]:
    """Runs the student, and the teachers that share a span with it, over a batch of one sequence.

    Distributions are those that predict a span's first token, at the teacher's temperature. Of a span the loss is
    that of training, before weights and scale. Under several processes all have to call it.

    Args:
        num_spans: Spans of each teacher that are shown; see :func:`choose_spans`.
        top_k: Tokens of each side.
    """
    batch = batch.planned(module.planners())
    student = module.student_rows(batch.student)
    tasks = module.teacher_tasks(batch)
    memory = module.logit_memory.beside()
    scores = evaluate_rows(student, tasks, batch.only(tasks).cuts, memory)
    results: dict[str, Predictions] = {}
    for name, task in tasks.items():
        starts = (batch.student.rows[task.spans.student_first] + 1).tolist()
        losses = dict(zip(starts, scores.spans[name].loss.tolist(), strict=True))
        index = torch.from_numpy(choose_spans(task.spans, num_spans)).to(task.spans.student_first.device)
        is_projected, of_student = _student_candidates(module, name, student, task, index, top_k)
        of_teacher = _top(_teacher_rows(task, index).exp(), top_k, module.teacher_vocabularies[name])
        columns = zip(index.tolist(), of_teacher, of_student, strict=True)
        spans = [SpanPrediction(starts[span], teacher, ours) for span, teacher, ours in columns]
        results[name] = Predictions(is_projected, losses, spans)
    module.release_models()
    return results


def choose_spans(spans: SpanBatch, num_spans: int) -> NDArray[np.int64]:
    """At most so many spans, increasing: up to half of them where the tokenizers differ; all evenly spread."""
    is_alike = ((spans.student_length == 1) & (spans.teacher_length == 1)).numpy(force=True)
    alike, unlike = np.flatnonzero(is_alike), np.flatnonzero(~is_alike)
    num_unlike = min(len(unlike), max(num_spans // 2, num_spans - len(alike)))
    chosen = [_evenly(unlike, num_unlike), _evenly(alike, min(len(alike), num_spans - num_unlike))]
    return np.sort(np.concatenate(chosen))


def _evenly(values: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """``num`` of the values, each in the middle of its share."""
    return values[((np.arange(num) + 0.5) * len(values) / max(1, num)).astype(np.int64)]


def _teacher_rows(task: TeacherTask, index: Tensor) -> Tensor:
    """``[K, V_t]`` log-probabilities at the first token of some spans."""
    first = task.spans.teacher_first[index]
    if isinstance(task.rows, HiddenRows):
        return task.rows.head.log_probs(task.rows.hidden[first], task.temperature)
    return task.rows.dense(first if task.rows.has_all else index)


def _student_candidates(
    module: MultiTeacherDistillModule, name: str, student: HiddenRows, task: TeacherTask, index: Tensor, top_k: int
) -> tuple[bool, list[list[Candidate]]]:
    """Whether they are teacher tokens, and the candidates."""
    probs = student.head.log_probs(student.hidden[task.spans.student_first[index]], task.temperature).exp()  # [K, V_s]
    projected = task.loss.in_teacher_tokens(probs)
    if projected is None:
        return False, _top(probs, top_k, module.student_vocabulary)
    return True, _top(projected[0], top_k, module.teacher_vocabularies[name], projected[1])


def _top(
    probs: Tensor, top_k: int, vocabulary: CanonicalVocabulary, columns: Tensor | None = None
) -> list[list[Candidate]]:
    values, places = probs.float().topk(min(top_k, probs.shape[1]), dim=1)
    ids = places if columns is None else columns[places]
    return [
        [Candidate(token, value) for token, value in zip(tokens_of(vocabulary, row), row_values, strict=True)]
        for row, row_values in zip(ids.tolist(), values.tolist(), strict=True)
    ]
