r"""Slow references of the losses that give a span one number from texts that both sides can write.

SimCT, strict top-k, ALM and the prefix partition KL, written from their definitions alone: plain loops over spans and
tokens in float64, differentiable with respect to the student's log-probabilities.

A span has student tokens s_1..s_n with rows p_1..p_n and teacher tokens t_1..t_m with rows q_1..q_m, which cover the
same bytes; p_i predicts s_i. C are the pairs of common tokens (student, teacher).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from plain_divergences import covered_divergence
from reference import Span
from reference_marginals import stacked, sum_of
from torch import Tensor

from xtoken_pl.losses import Divergence

# N_s/N_t rows (tokens), S spans, V_s/V_t vocabulary sizes (student/teacher)

#: A token's own spelling in tokens of the other side, in the middle of a text; none if it cannot be written.
Spelling = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class Units:
    """The relations of two vocabularies.

    Args:
        common: C.
        student_spelling: Spelling of teacher tokens that have bytes, in student tokens.
        teacher_spelling: Spelling of student tokens that have bytes, in teacher tokens.
        student_lengths: Bytes of every student token, 1 for a special token.
        teacher_lengths: The same of the teacher.
        student_preferred: Of the student tokens with equal bytes, the one that writes them.
        teacher_preferred: The same of the teacher.
    """

    common: Sequence[tuple[int, int]]
    student_spelling: Spelling = field(default_factory=dict)
    teacher_spelling: Spelling = field(default_factory=dict)
    student_lengths: Sequence[int] = ()
    teacher_lengths: Sequence[int] = ()
    student_preferred: Collection[int] = ()
    teacher_preferred: Collection[int] = ()


def best(values: Tensor, count: int | None) -> list[int]:
    """Places of the highest values; all without a count."""
    listed = values.tolist()
    order = sorted(range(len(listed)), key=lambda place: -listed[place])
    return order if count is None else order[:count]


def with_bucket(values: Tensor, places: Sequence[int]) -> Tensor:
    """The values at these places, and the sum of the others if there are any."""
    others = [place for place in range(len(values)) if place not in places]
    kept = [values[place] for place in places]
    return torch.stack([*kept, sum_of([values[place] for place in others])] if others else kept)


def kept_divergence(teacher: Tensor, student: Tensor, divergence: Divergence, teacher_top_k: int | None) -> Tensor:
    """The divergence of two distributions over the teacher's k most probable entries and the rest in one."""
    if teacher_top_k is None:
        return covered_divergence(teacher, student, divergence)
    places = best(teacher, teacher_top_k)
    return covered_divergence(with_bucket(teacher, places), with_bucket(student, places), divergence)


def simct(
    units: Units,
    student: Tensor,
    teacher: Tensor,
    labels: tuple[list[int], list[int]],
    spans: Sequence[Span],
    candidates: str = "path",
    divergence: Divergence = "reverse",
    teacher_top_k: int | None = None,
) -> Tensor:
    """SimCT of every span, in nats: the divergence of softmaxes over the scores of candidate texts.

    A candidate is the student tokens s_1..s_{a-1}, x and the teacher tokens t_1..t_{b-1}, y. Its score is the mean
    log-probability of a side's tokens. All pairs of C are candidates at a = b = 1. In a span that is not one-to-one,
    so are the span's own text and, with `path`, the tokens of one side whose spelling follows the other's path up to
    its last token.

    Shape:
        student: [N_s, V_s] log-probabilities, row i predicts labels[0][i]; teacher: [N_t, V_t]; returns: [S], float64.
    """
    losses = []
    for a, b, c, d in spans:
        s, t = labels[0][a:b], labels[1][c:d]
        texts: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        if len(s) > 1 or len(t) > 1:
            texts.append((tuple(s), tuple(t)))
            if candidates == "path" and _same_length(units, s, t):
                texts += own_texts(units, s, t)
        ours = [student[a, [x for x, _ in units.common]], *(_mean(student, a, tokens)[None] for tokens, _ in texts)]
        theirs = [teacher[c, [y for _, y in units.common]], *(_mean(teacher, c, tokens)[None] for _, tokens in texts)]
        p, q = (torch.cat(scores).softmax(0) for scores in (ours, theirs))
        losses.append(kept_divergence(q, p, divergence, teacher_top_k))
    return stacked(losses)


def _same_length(units: Units, s: Sequence[int], t: Sequence[int]) -> bool:
    return sum(units.student_lengths[x] for x in s) == sum(units.teacher_lengths[y] for y in t)


def own_texts(units: Units, s: Sequence[int], t: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Texts that are one token of one side, and follow the other side's tokens up to their last."""
    of_student = {x for x, _ in units.common}
    of_teacher = {y for _, y in units.common}
    texts: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for v, spelled in units.student_spelling.items():
        if v not in of_teacher and v in units.teacher_preferred and _follows(spelled, s) and [v] != list(t):
            texts.append((spelled, (v,)))
    for u, spelled in units.teacher_spelling.items():
        if u not in of_student and u in units.student_preferred and _follows(spelled, t) and [u] != list(s):
            texts.append(((u,), spelled))
    return texts


def _follows(spelled: tuple[int, ...], tokens: Sequence[int]) -> bool:
    """Whether a spelling of two tokens or more follows a path up to its last token, and is not the path itself."""
    count = len(spelled)
    return 2 <= count <= len(tokens) and list(spelled[:-1]) == list(tokens[: count - 1]) and spelled != tuple(tokens)


def _mean(log_probs: Tensor, first: int, tokens: Sequence[int]) -> Tensor:
    return sum_of([log_probs[first + place, token] for place, token in enumerate(tokens)]) / len(tokens)


def strict_top_k(
    common: Sequence[tuple[int, int]],
    student: Tensor,
    teacher: Tensor,
    spans: Sequence[Span],
    student_top_k: int | None = None,
    divergence: Divergence = "reverse",
    teacher_top_k: int | None = None,
) -> Tensor:
    """Strict top-k of every span, in nats: one-to-one spans only, within C or its k pairs of highest p, renormalized.

    Shape:
        student: [N_s, V_s] log-probabilities; teacher: [N_t, V_t]; returns: [S], float64.
    """
    losses = []
    for a, b, c, d in spans:
        loss = torch.zeros((), dtype=torch.float64)
        if b - a == 1 and d - c == 1:
            p, q = student[a, [x for x, _ in common]].exp(), teacher[c, [y for _, y in common]].exp()
            places = best(p, student_top_k)
            p, q = p[places] / p[places].sum(), q[places] / q[places].sum()
            loss = kept_divergence(q, p, divergence, teacher_top_k)
        losses.append(loss)
    return stacked(losses)


def alm(
    student: Tensor,
    teacher: Tensor,
    labels: tuple[list[int], list[int]],
    spans: Sequence[Span],
    tau: float = 100.0,
    divergence: Divergence = "forward",
    epsilon: float = 1e-6,
) -> Tensor:
    """ALM of every span, in nats: the divergence of (a, 1 - a) and (b, 1 - b), a = P_T^{1/τ}, b = P_S^{1/τ}.

    P is the probability of all tokens of the span; both are less a factor e^-ε, so that no logarithm is that of 0.

    Shape:
        student: [N_s, V_s] log-probabilities, row i predicts labels[0][i]; teacher: [N_t, V_t]; returns: [S], float64.
    """
    losses = []
    for a, b, c, d in spans:
        theirs = sum_of([teacher[row, labels[1][row]] for row in range(c, d)]) / tau - epsilon
        ours = sum_of([student[row, labels[0][row]] for row in range(a, b)]) / tau - epsilon
        binary = [torch.stack([value.exp(), -value.expm1()]) for value in (theirs, ours)]
        losses.append(covered_divergence(binary[0], binary[1], divergence))
    return stacked(losses)


def prefix_partition(
    units: Units,
    student: Tensor,
    teacher: Tensor,
    labels: tuple[list[int], list[int]],
    spans: Sequence[Span],
    divergence: Divergence = "forward",
    first_weight: float = 0.2,
    teacher_top_k: int | None = None,
    smallest: float = 1e-300,
) -> Tensor:
    """The prefix partition KL of every span, in nats.

    The main term compares cells (x, y), a student token that ends the span's student tokens and a teacher token that
    ends its teacher tokens, and all the rest as one: P(x) = Π_{i<n} p_i(s_i)·p_n(x), Q(y) = Π_{j<m} q_j(t_j)·q_m(y).
    The first-position term of a span that is not one-to-one compares pairs of C at its first rows in the same way.
    Where pairs of C are compared, the rest is one of the columns of which ``teacher_top_k`` stay.

    Shape:
        student: [N_s, V_s] log-probabilities, row i predicts labels[0][i]; teacher: [N_t, V_t]; returns: [S], float64.
    """
    losses = []
    for a, b, c, d in spans:
        s, t = labels[0][a:b], labels[1][c:d]

        def compared(p: Tensor, q: Tensor, top_k: int | None) -> Tensor:
            sides = [torch.cat([side, (1 - side.sum()).clamp_min(smallest)[None]]) for side in (q, p)]
            return kept_divergence(sides[0], sides[1], divergence, top_k)

        cells = _cells(units, s, t)
        before = [
            math.prod(
                (rows[first + i, token].exp() for i, token in enumerate(tokens[:-1])), start=torch.ones(()).double()
            )
            for rows, first, tokens in ((student, a, s), (teacher, c, t))
        ]
        loss = torch.zeros((), dtype=torch.float64)
        if cells:
            p = before[0] * student[b - 1, [x for x, _ in cells]].exp()
            q = before[1] * teacher[d - 1, [y for _, y in cells]].exp()
            loss = compared(p, q, teacher_top_k if len(s) == len(t) == 1 else None)
        if len(s) > 1 or len(t) > 1:
            taken = {x for x, _ in cells}
            left = [(x, y) for x, y in units.common if x != s[0] and y != t[0] and x not in taken]
            if left:
                p, q = student[a, [x for x, _ in left]].exp(), teacher[c, [y for _, y in left]].exp()
                loss = loss + first_weight * compared(p, q, teacher_top_k)
        losses.append(loss)
    return stacked(losses)


def _cells(units: Units, s: Sequence[int], t: Sequence[int]) -> list[tuple[int, int]]:
    """The cells of a span: last student tokens and last teacher tokens that write one text."""
    if len(s) == len(t) == 1:
        return list(units.common)
    cells: dict[int, tuple[int, int]] = {}  # by the last token of the side that has several
    if len(s) == 1:
        for u in sorted(units.teacher_spelling):
            spelled = units.teacher_spelling[u]
            if len(spelled) == len(t) and list(spelled[:-1]) == list(t[:-1]):
                cells.setdefault(spelled[-1], (u, spelled[-1]))
    elif len(t) == 1:
        for v in sorted(units.student_spelling):
            spelled = units.student_spelling[v]
            if len(spelled) == len(s) and list(spelled[:-1]) == list(s[:-1]):
                cells.setdefault(spelled[-1], (spelled[-1], v))
    return [(s[-1], t[-1]), *((x, y) for x, y in cells.values() if x != s[-1] and y != t[-1])]
