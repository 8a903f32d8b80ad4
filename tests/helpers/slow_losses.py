"""The slow references of the losses that read texts or pairs of tokens, as functions of the rows of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from fake_vocabularies import V_S, V_T, dense, random_projection, slow_pairs
from kept_rows import keep_and_spread
from reference_losses import divergence, merge_span
from reference_marginals import bpm, escd
from reference_units import alm, prefix_partition, simct, strict_top_k
from span_rows import Spans
from torch import Tensor
from vocabulary_relations import marginals_between, units_between

from xtoken_pl import BPM, HybridKL, ProjectionKL

if TYPE_CHECKING:
    from loss_cases import LossRows


def spans_of(rows: LossRows) -> Spans:
    """Start and end of every span, on both sides."""
    spans = rows.spans
    bounds = zip(spans.student_first, spans.student_length, spans.teacher_first, spans.teacher_length, strict=True)
    return [(int(a), int(a + n), int(c), int(c + m)) for a, n, c, m in bounds]


def slow_marginal(rows: LossRows, student: Tensor, teacher: Tensor, loss: Any) -> Tensor:
    """BPM or ESCD."""
    assert rows.pair is not None
    labels = rows.labels[0].tolist(), rows.labels[1].tolist()
    kept = None
    if loss.teacher_top_k is not None:
        both = [
            keep_and_spread(row, label, loss.teacher_top_k)
            for row, label in zip(teacher.exp().tolist(), labels[1], strict=True)
        ]
        teacher, kept = torch.tensor([row for row, _ in both], dtype=torch.float64).log(), [ids for _, ids in both]
    marginals = marginals_between(rows.pair.student.tokenizer, rows.pair.teacher.tokenizer)
    sides = marginals, student, teacher, labels, spans_of(rows)
    if isinstance(loss, BPM):
        return bpm(*sides, loss.divergence, kept)
    places, span = rows.pair.batch.student.rows.tolist(), rows.spans.student_span.tolist()
    follows = [
        row + 1 < len(places) and places[row + 1] == places[row] + 1 and span[row + 1] < len(rows.spans)
        for row in range(len(places))
    ]
    return escd(*sides, follows, loss.divergence, kept)


def slow_simct(rows: LossRows, student: Tensor, teacher: Tensor, loss: Any) -> Tensor:
    assert rows.pair is not None
    units = units_between(rows.pair.student.tokenizer, rows.pair.teacher.tokenizer)
    labels = rows.labels[0].tolist(), rows.labels[1].tolist()
    sides = units, student, teacher, labels, spans_of(rows)
    return simct(*sides, loss.units, loss.divergence, loss.teacher_top_k)


def slow_prefix_partition(rows: LossRows, student: Tensor, teacher: Tensor, loss: Any) -> Tensor:
    assert rows.pair is not None
    units = units_between(rows.pair.student.tokenizer, rows.pair.teacher.tokenizer)
    labels = rows.labels[0].tolist(), rows.labels[1].tolist()
    sides = units, student, teacher, labels, spans_of(rows)
    return prefix_partition(*sides, loss.divergence, loss.first_weight, loss.teacher_top_k)


def slow_strict_top_k(rows: LossRows, student: Tensor, teacher: Tensor, loss: Any) -> Tensor:
    options = loss.student_top_k, loss.divergence, loss.teacher_top_k
    return strict_top_k(slow_pairs(None), student, teacher, spans_of(rows), *options)


def slow_alm(rows: LossRows, student: Tensor, teacher: Tensor, loss: Any) -> Tensor:
    labels = rows.labels[0].tolist(), rows.labels[1].tolist()
    return alm(student, teacher, labels, spans_of(rows), loss.tau, loss.divergence)


def slow_top_k(rows: LossRows, student: Tensor, teacher: Tensor, loss: Any) -> Tensor:
    """TokenKL, P-KL by the chain rule or H-KL, of the teacher's k most probable tokens and of one bucket."""
    pairs, projection, top_k = slow_pairs(random_projection()), dense(random_projection()), loss.teacher_top_k
    reached = projection.any(0).nonzero().squeeze(1).tolist()
    losses: list[Tensor] = []
    for a, b, c, d in spans_of(rows):
        q, student_total = merge_span(student, rows.labels[0], a, b, loss.merge)
        p, teacher_total = merge_span(teacher, rows.labels[1], c, d, loss.merge)
        rest = torch.zeros((), dtype=torch.float64)
        if isinstance(loss, ProjectionKL):
            p, q = p[reached], (projection.T @ q)[reached]
            teacher_total, student_total = p.sum(), q.sum()
        elif isinstance(loss, HybridKL):
            of_student, of_teacher = ([pair[side] for pair in pairs] for side in (0, 1))
            others = [
                q[[s for s in range(V_S) if s not in of_student]],
                p[[t for t in range(V_T) if t not in of_teacher]],
            ]
            highest = [side.sort(descending=True).values for side in others]
            for rank in range(top_k):
                first, second = (side[rank] if rank < len(side) else side.new_zeros(()) for side in highest)
                rest = rest + (first - second).abs()
            rest = rest + (highest[0][top_k:].sum() - highest[1][top_k:].sum()).abs()
            p, q = p[of_teacher], q[of_student]
        kept = sorted(range(len(p)), key=lambda column: -float(p[column]))[:top_k]
        merged = [column for column in range(len(p)) if column not in kept]
        p, q = (torch.cat([side[kept], side[merged].sum()[None]]) for side in (p, q))
        losses.append(divergence(p, q, loss.divergence, teacher_total, student_total) + rest)
    return torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)
