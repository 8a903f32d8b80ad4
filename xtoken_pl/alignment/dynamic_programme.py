r"""The paper's dynamic programme, for the stretches where the two byte streams differ.

.. math::
    D(i,j) = \max \{ D(i-1,j-1) \pm 3,\;
                     D(i-1,j-k) + 1.5k,\; D(i-k,j-1) + 1.5k,\;
                     D(i-1,j) - 1.5,\; D(i,j-1) - 1.5 \}

with 2 <= k <= L = 4. A mismatch costs as much as leaving out both tokens. The best alignment is therefore the heaviest
chain of groups with equal bytes, where a group weighs its gain plus the cost of leaving out its tokens. Only these
groups are visited, and not the n x m cells of the table.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MATCH, GAP, PER_TOKEN = 3.0, -1.5, 1.5
MAX_SPAN_TOKENS = 4
# Gain of a group of one token to k, and the cost of leaving out its tokens, which it saves; by k.
_WEIGHTS = (0.0, MATCH - 2 * GAP, *(PER_TOKEN * k - GAP * (1 + k) for k in range(2, MAX_SPAN_TOKENS + 1)))
#: Number of places on the teacher's side at which the same bytes are tried: those nearest to the student's place, in
#: proportion to the lengths of both sides. The work is thus linear in the number of tokens.
MAX_PLACES = 8
#: Largest product of the numbers of tokens; a longer stretch is left as a gap, since a text that was rewritten entirely
#: has no spans, and equal bytes so far apart are mere chance.
MAX_CELLS = 4_000_000

Group = tuple[int, int, int, int]  # student_start, student_end, teacher_start, teacher_end; equal bytes on both sides


def align_stretch(student: Sequence[bytes], teacher: Sequence[bytes]) -> NDArray[np.int64]:
    """Aligns the tokens of a stretch whose bytes differ between the two sides.

    Args:
        student: Student tokens (any byte strings that are equal where the texts are equal).
        teacher: Teacher tokens, likewise.

    Returns:
        ``[S, 4]`` spans (student_start, student_end, teacher_start, teacher_end), without mismatches and gaps. They
        have the best score if no bytes are at more than :data:`MAX_PLACES` places of the teacher's side.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, span alignment.
    """
    n, m = len(student), len(teacher)
    if n * m > MAX_CELLS:
        logger.warning(
            "skipping the alignment of a rewritten stretch of %d x %d tokens (limit: %d cells)", n, m, MAX_CELLS
        )
        return np.empty((0, 4), dtype=np.int64)
    chain = _heaviest_chain(equal_groups(student, teacher), n, m)
    return np.array(chain, dtype=np.int64).reshape(-1, 4)


def equal_groups(student: Sequence[bytes], teacher: Sequence[bytes]) -> Iterator[Group]:
    """Yields the groups of one token to at most ``MAX_SPAN_TOKENS`` with equal bytes, by increasing student start."""
    slope = len(teacher) / max(1, len(student))
    teacher_starts = [_starts_by_bytes(teacher, k) for k in range(1, MAX_SPAN_TOKENS + 1)]
    joined = [_joined(student, k) for k in range(1, MAX_SPAN_TOKENS + 1)]
    for start, token in enumerate(student):
        for k, starts in enumerate(teacher_starts, start=1):
            if token in starts:
                for other_start in _nearest(starts[token], start * slope):
                    yield start, start + 1, other_start, other_start + k
        for k in range(2, min(MAX_SPAN_TOKENS, len(student) - start) + 1):
            if (text := joined[k - 1][start]) in teacher_starts[0]:
                for other_start in _nearest(teacher_starts[0][text], start * slope):
                    yield start, start + k, other_start, other_start + 1


def _joined(tokens: Sequence[bytes], k: int) -> list[bytes]:
    """Bytes of the k tokens from each token on; those that are fewer than k are left out."""
    text, bounds = b"".join(tokens), [0, *accumulate(map(len, tokens))]
    return [text[low:high] for low, high in zip(bounds, bounds[k:], strict=False)]


def _starts_by_bytes(tokens: Sequence[bytes], k: int) -> dict[bytes, list[int]]:
    starts: defaultdict[bytes, list[int]] = defaultdict(list)
    for start, text in enumerate(_joined(tokens, k)):
        starts[text].append(start)
    return dict(starts)


def _nearest(places: list[int], expected: float) -> list[int]:
    if len(places) <= MAX_PLACES:
        return places
    first = min(max(0, bisect_left(places, expected) - MAX_PLACES // 2), len(places) - MAX_PLACES)
    return places[first : first + MAX_PLACES]


def _heaviest_chain(groups: Iterator[Group], num_student: int, num_teacher: int) -> list[Group]:
    """Selects groups in order on both sides, with the largest sum of weights; of equal sums, the one with less drift.

    Args:
        groups: Groups by increasing student start.
        num_student: Number of student tokens.
        num_teacher: Number of teacher tokens.
    """
    best = _BestChains()
    waiting: defaultdict[int, list[tuple[int, float, _Chain]]] = defaultdict(list)  # chains by their student end
    num_added = 0
    for group in groups:
        start, end, other_start, other_end = group
        while num_added <= start:
            for chain in waiting.pop(num_added, ()):
                best.add(*chain)
            num_added += 1
        score, before = best.up_to(other_start)
        drift = abs(start / num_student - other_start / num_teacher)  # in sum below 1, and scores are multiples of 1.5
        score += _WEIGHTS[max(end - start, other_end - other_start)] - drift / (num_student + num_teacher)
        if score > best.up_to(other_end)[0]:
            waiting[end].append((other_end, score, (group, before)))
    for end in sorted(waiting):
        for chain in waiting[end]:
            best.add(*chain)
    _, last = best.up_to(num_teacher)
    found: list[Group] = []
    while last is not None:
        group, last = last
        found.append(group)
    return found[::-1]


_Chain = tuple[Group, "_Chain | None"]


class _BestChains:
    """The best chain up to each teacher position; ends and scores both increase."""

    def __init__(self) -> None:
        self._ends, self._scores = [0], [0.0]
        self._chains: list[_Chain | None] = [None]

    def up_to(self, other_end: int) -> tuple[float, _Chain | None]:
        """Returns the best score, and its chain, that ends at or before a teacher position."""
        place = bisect_right(self._ends, other_end) - 1
        return self._scores[place], self._chains[place]

    def add(self, other_end: int, score: float, chain: _Chain) -> None:
        """Adds a chain; those that end later with a lower score are dropped."""
        low = bisect_left(self._ends, other_end)
        high = bisect_right(self._scores, score)
        if low < high:
            self._ends[low:high], self._scores[low:high], self._chains[low:high] = [other_end], [score], [chain]
        elif self._scores[low - 1] < score:
            self._ends.insert(low, other_end)
            self._scores.insert(low, score)
            self._chains.insert(low, chain)
