r"""Slow references of the byte-prefix marginals (BPM) and of ESCD, written from their definitions alone.

Plain loops over spans, tokens and bytes in float64; differentiable with respect to the student's log-probabilities.

b(.) are a token's bytes. Student tokens of equal bytes are one *unit*; each special token is a unit of its own. φ(x) is
the unit of the longest student token whose bytes are a prefix of x. A student row predicts the observed token a, whose
first byte lies in the teacher token t_1; c bytes of t_1 come before it: a *boundary* if c = 0, else *inside*. The
observed teacher tokens from t_1 to the end of the span are t_1, t_2, …, and q_j is the row that predicts t_j.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from plain_divergences import covered_divergence
from reference import Span
from torch import Tensor

from xtoken_pl.losses import Divergence

# N_s/N_t rows (tokens), S spans, V_s/V_t vocabulary sizes (student/teacher)

#: Student tokens with these bytes, or one special student token.
Unit = bytes | int


class Place(NamedTuple):
    """A student row and the teacher rows behind the place where its observed token begins."""

    row: int
    observed: int
    teacher_rows: list[int]  # of t_1, t_2, … up to the end of the span
    path: list[int]  # t_1, t_2, …
    consumed: int


@dataclass(frozen=True)
class Group:
    """Student tokens that are compared as one: the teacher's mass, and whether a kept token gives it any."""

    mass: float
    tokens: list[int]
    is_known: bool


@dataclass(frozen=True)
class Marginals:
    """The relations of two vocabularies.

    Args:
        student: Bytes of every student token; empty for special tokens and ids that do not exist.
        teacher: The same of the teacher.
        special: Teacher special token -> the student's of the same role, the lowest id of several.
        student_unused: Student ids that do not exist.
        teacher_unused: Teacher ids that do not exist.
    """

    student: Sequence[bytes]
    teacher: Sequence[bytes]
    special: Mapping[int, int]
    student_unused: Collection[int] = ()
    teacher_unused: Collection[int] = ()

    @cached_property
    def units(self) -> dict[Unit, list[int]]:
        """The student tokens of each unit."""
        units: dict[Unit, list[int]] = {}
        for s in range(len(self.student)):
            if s not in self.student_unused:
                units.setdefault(self.unit_of(s), []).append(s)
        return units

    def unit_of(self, s: int) -> Unit:
        return self.student[s] or s

    def phi(self, text: bytes) -> Unit | None:
        """The longest student token that is a prefix of a text."""
        for length in range(len(text), 0, -1):
            if text[:length] in self.units:
                return text[:length]
        return None

    @cached_property
    def receivers(self) -> dict[int, Unit | None]:
        """φ of every teacher token that exists."""
        exist = [v for v in range(len(self.teacher)) if v not in self.teacher_unused]
        return {v: self.phi(self.teacher[v]) if self.teacher[v] else self.special.get(v) for v in exist}

    def places(self, labels: tuple[list[int], list[int]], span: Span) -> Iterator[Place]:
        """The student rows of a span that have a loss.

        Lengths are counted from the end of the span: a space before the text, which only one side has, is in front.
        """
        student_start, student_end, teacher_start, teacher_end = span
        student_lengths = [len(self.student[s]) or 1 for s in labels[0][student_start:student_end]]
        teacher_lengths = [len(self.teacher[t]) or 1 for t in labels[1][teacher_start:teacher_end]]
        begin = sum(teacher_lengths) - sum(student_lengths)
        for row, length in zip(range(student_start, student_end), student_lengths, strict=True):
            if begin >= 0:
                first, before = 0, 0
                while before + teacher_lengths[first] <= begin:
                    before += teacher_lengths[first]
                    first += 1
                rows = list(range(teacher_start + first, teacher_end))
                yield Place(row, labels[0][row], rows, [labels[1][j] for j in rows], begin - before)
            begin += length

    def continuation(self, place: Place, teacher: Tensor) -> float | None:
        """κ = q_2(t_2)···q_n(t_n) if the observed token ends where t_n ends, n >= 2; otherwise None."""
        end = place.consumed + (len(self.student[place.observed]) or 1)
        kappa, reached = 1.0, len(self.teacher[place.path[0]]) or 1
        for row, t in zip(place.teacher_rows[1:], place.path[1:], strict=True):
            if reached >= end:
                break
            kappa *= teacher[row, t].exp().item()
            reached += len(self.teacher[t]) or 1
        is_path = reached == end and (len(self.teacher[place.path[0]]) or 1) < end
        return kappa if is_path else None

    def groups(self, place: Place, teacher: Tensor, kept: Collection[int] | None = None) -> list[Group]:
        """The groups of a place with their masses, which are not normalized.

        Args:
            place: The student row.
            teacher: [N_t, V_t] log-probabilities.
            kept: Teacher tokens of q_1 that are known one by one; None for all.
        """
        q = teacher[place.teacher_rows[0]].exp().tolist()
        receivers = self.receivers
        if place.consumed:
            given = self.teacher[place.path[0]][: place.consumed]
            longer = [v for v in receivers if len(self.teacher[v]) > len(given) and self.teacher[v].startswith(given)]
            rests = {v: self.phi(self.teacher[v][len(given) :]) for v in longer}
            receivers = {v: unit for v, unit in rests.items() if unit is not None}
        kappa = self.continuation(place, teacher)
        masses: dict[Unit | None, float] = {}
        known: set[Unit | None] = set()
        for v, unit in receivers.items():
            stays = 1 - kappa if kappa is not None and v == place.path[0] else 1.0
            masses[unit] = masses.get(unit, 0.0) + q[v] * stays
            if kept is None or v in kept:
                known.add(unit)
        tokens = {unit: [] if unit is None else self.units[unit] for unit in masses}
        if kappa is not None:
            target = self.unit_of(place.observed)
            if target not in masses:
                tokens[target] = self.units[target] if place.consumed else [place.observed]
            masses[target] = masses.get(target, 0.0) + q[place.path[0]] * kappa
            known.add(target)
        if None in masses:  # ⊥: all other student tokens
            in_units = {s for unit, members in tokens.items() if unit is not None for s in members}
            others = [s for members in self.units.values() for s in members if s not in in_units]
            tokens[None] = others
            if not others:
                del masses[None]
        return [Group(mass, tokens[unit], unit in known) for unit, mass in masses.items()]

    @cached_property
    def completions(self) -> dict[bytes, list[int]]:
        """ESCD's groups: y_g -> its members, teacher tokens whose bytes are those of no student token."""
        single = {text for text in self.student if text}
        vocabulary = [v for v in self.receivers if self.teacher[v] and self.teacher[v] not in single]
        texts = {self.teacher[v] for v in vocabulary}
        groups: dict[bytes, list[int]] = {}
        for v in vocabulary:
            text = self.teacher[v]
            prefixes = [text[:length] for length in range(1, len(text) + 1) if text[:length] in texts]
            groups.setdefault(prefixes[0], []).append(v)
        return groups

    def completion_sets(self, observed: int) -> list[tuple[list[int], list[int]]]:
        """The groups that begin with the observed token and go on: their teacher tokens, and C(r_g) if it is none."""
        text = self.student[observed]
        sets = []
        for shortest, members in self.completions.items():
            if text and len(text) < len(shortest) and shortest.startswith(text):
                rest = shortest[len(text) :]
                complete = [s for s in range(len(self.student)) if self.student[s].startswith(rest)]
                if complete:
                    sets.append((members, complete))
        return sets


def divergence_of(groups: list[Group], student: Tensor, divergence: Divergence) -> Tensor:
    """D(t, P̃) - log M, P_g = Σ_{s∈g} p(s), M = Σ_g P_g, P̃ = P / M; t is normalized. Groups of no kept token are one.

    Shape:
        student: [V_s] log-probabilities; returns: [].
    """
    unknown = [group for group in groups if not group.is_known]
    if unknown:
        merged = Group(sum(group.mass for group in unknown), [s for g in unknown for s in g.tokens], True)
        groups = [*(group for group in groups if group.is_known), merged]
    masses = torch.tensor([group.mass for group in groups], dtype=torch.float64)
    places, tokens = zip(*((g, s) for g, group in enumerate(groups) for s in group.tokens), strict=True)
    ours = torch.zeros_like(masses).index_add(0, torch.tensor(places), student.exp()[list(tokens)])
    return covered_divergence(masses / masses.sum(), ours, divergence)


def sum_of(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def bpm(
    marginals: Marginals,
    student: Tensor,
    teacher: Tensor,
    labels: tuple[list[int], list[int]],
    spans: Sequence[Span],
    divergence: Divergence = "forward",
    kept: Sequence[Collection[int]] | None = None,
) -> Tensor:
    """BPM of every span, in nats: the divergence at each of its student rows, boundary or inside.

    Args:
        marginals: The two vocabularies.
        student: The student's log-probabilities.
        teacher: The teacher's log-probabilities, its rows spread already if `kept` is given.
        labels: The tokens that the rows of both sides predict.
        spans: Spans over the rows of both sides.
        divergence: forward, reverse or jensen_shannon.
        kept: The tokens of each teacher row that are known one by one; None for all.

    Shape:
        student: [N_s, V_s]; teacher: [N_t, V_t]; returns: [S], float64.
    """
    losses: list[Tensor] = []
    for span in spans:
        loss = torch.zeros((), dtype=torch.float64)
        for place in marginals.places(labels, span):
            groups = marginals.groups(place, teacher, None if kept is None else kept[place.teacher_rows[0]])
            loss = loss + divergence_of(groups, student[place.row], divergence)
        losses.append(loss)
    return stacked(losses)


def escd(
    marginals: Marginals,
    student: Tensor,
    teacher: Tensor,
    labels: tuple[list[int], list[int]],
    spans: Sequence[Span],
    follows: Sequence[bool],
    divergence: Divergence = "forward",
    kept: Sequence[Collection[int]] | None = None,
) -> Tensor:
    """ESCD of every span, in nats: BPM at boundaries, and completion at the row behind each of them.

    -Σ_g M_g log Σ_{u∈C(r_g)} p(u), M_g = Σ_{v∈g} q(v), over the groups g whose shortest text begins with the observed
    token and goes on; p is the student's next row, whose span the term belongs to, q the teacher's row of the boundary.

    Args:
        marginals, student, teacher, labels, spans, divergence, kept: As for :func:`bpm`.
        follows: Whether the row behind each student row is that of the next token, and in a span.

    Shape:
        student: [N_s, V_s]; teacher: [N_t, V_t]; follows: [N_s]; returns: [S], float64.
    """
    losses = [torch.zeros((), dtype=torch.float64) for _ in spans]
    span_of = {row: index for index, (start, end, _, _) in enumerate(spans) for row in range(start, end)}
    for index, span in enumerate(spans):
        for place in (place for place in marginals.places(labels, span) if not place.consumed):
            known = None if kept is None else kept[place.teacher_rows[0]]
            groups = marginals.groups(place, teacher, known)
            losses[index] = losses[index] + divergence_of(groups, student[place.row], divergence)
            if not follows[place.row]:
                continue
            apart, together = [], []
            following = student[place.row + 1].exp()
            for members, complete in marginals.completion_sets(place.observed):
                mass = teacher[place.teacher_rows[0], members].exp().sum()
                ours = following[complete].sum()
                is_known = known is None or any(v in known for v in members)
                (apart if is_known else together).append((mass, ours))
            if together:
                apart.append((sum_of([mass for mass, _ in together]), sum_of([ours for _, ours in together])))
            for mass, ours in apart:
                behind = span_of[place.row + 1]
                losses[behind] = losses[behind] - mass * ours.log()
    return stacked(losses)


def stacked(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)) if losses else torch.zeros(0, dtype=torch.float64)
