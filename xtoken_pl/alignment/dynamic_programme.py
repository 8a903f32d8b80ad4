r"""The paper's dynamic programme, for the stretches where the two byte streams differ.

.. math::
    D(i,j) = \max \{ D(i-1,j-1) \pm 3,\;
                     D(i-1,j-k) + 1.5k,\; D(i-k,j-1) + 1.5k,\;
                     D(i-1,j) - 1.5,\; D(i,j-1) - 1.5 \}

with 2 <= k <= L = 4. The table is filled along anti-diagonals, so that every step is a vector operation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MATCH, MISMATCH, GAP, PER_TOKEN = 3.0, -3.0, -1.5, 1.5
MAX_SPAN_TOKENS = 4
#: Largest number of cells; a longer stretch is left as a gap, since a text that was rewritten entirely has no spans.
MAX_CELLS = 4_000_000

# Moves as (student tokens, teacher tokens), in the order of preference on ties.
_MOVES = ((1, 1), *((1, k) for k in range(2, MAX_SPAN_TOKENS + 1)), *((k, 1) for k in range(2, MAX_SPAN_TOKENS + 1)))
_STUDENT_GAP, _TEACHER_GAP = len(_MOVES), len(_MOVES) + 1


def align_stretch(student: Sequence[bytes], teacher: Sequence[bytes]) -> NDArray[np.int64]:
    """Aligns the tokens of a stretch whose bytes differ between the two sides.

    Args:
        student: Student tokens (any byte strings that are equal where the texts are equal).
        teacher: Teacher tokens, likewise.

    Returns:
        ``[S, 4]`` spans (student_start, student_end, teacher_start, teacher_end), without mismatches and gaps.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, span alignment.
    """
    n, m = len(student), len(teacher)
    if n == 0 or m == 0:
        return np.empty((0, 4), dtype=np.int64)
    if n * m > MAX_CELLS:
        logger.warning(
            "skipping the alignment of a rewritten stretch of %d x %d tokens (limit: %d cells)", n, m, MAX_CELLS
        )
        return np.empty((0, 4), dtype=np.int64)
    moves = _fill(_joined_ids(student, teacher), n, m)
    return _trace_back(moves, n, m, student, teacher)


def _joined_ids(
    student: Sequence[bytes], teacher: Sequence[bytes]
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """For k = 1..L, numbers the text of the k tokens that end at each token; equal texts have equal numbers."""
    known: dict[bytes, int] = {}

    def ids(tokens: Sequence[bytes], k: int, missing: int) -> NDArray[np.int64]:
        joined = (b"".join(tokens[end - k : end]) if end >= k else None for end in range(1, len(tokens) + 1))
        return np.array([missing if text is None else known.setdefault(text, len(known)) for text in joined])

    lengths = range(1, MAX_SPAN_TOKENS + 1)
    return [ids(student, k, -1) for k in lengths], [ids(teacher, k, -2) for k in lengths]


def _fill(ids: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]], n: int, m: int) -> NDArray[np.int8]:
    """Computes the best move into every cell, ``[n + 1, m + 1]``."""
    student_ids, teacher_ids = ids
    score = np.full((n + 1, m + 1), -np.inf)
    score[:, 0], score[0, :] = GAP * np.arange(n + 1), GAP * np.arange(m + 1)
    moves = np.zeros((n + 1, m + 1), dtype=np.int8)
    moves[:, 0], moves[0, :] = _STUDENT_GAP, _TEACHER_GAP
    for diagonal in range(2, n + m + 1):
        i = np.arange(max(1, diagonal - m), min(n, diagonal - 1) + 1)
        j = diagonal - i
        candidates = np.full((len(_MOVES) + 2, len(i)), -np.inf)
        for move, (a, b) in enumerate(_MOVES):
            inside = (i >= a) & (j >= b)
            equal = student_ids[a - 1][i - 1] == teacher_ids[b - 1][j - 1]
            if a == b:
                gain = np.where(equal, MATCH, MISMATCH)
            else:
                gain = np.where(equal & inside, PER_TOKEN * max(a, b), -np.inf)
            candidates[move] = score[np.maximum(i - a, 0), np.maximum(j - b, 0)] + gain
        candidates[_STUDENT_GAP] = score[i - 1, j] + GAP
        candidates[_TEACHER_GAP] = score[i, j - 1] + GAP
        best = candidates.argmax(axis=0)
        moves[i, j] = best
        score[i, j] = candidates[best, np.arange(len(i))]
    return moves


def _trace_back(
    moves: NDArray[np.int8], n: int, m: int, student: Sequence[bytes], teacher: Sequence[bytes]
) -> NDArray[np.int64]:
    spans: list[tuple[int, int, int, int]] = []
    i, j = n, m
    while i > 0 or j > 0:
        move = int(moves[i, j])
        if move == _STUDENT_GAP:
            i -= 1
        elif move == _TEACHER_GAP:
            j -= 1
        else:
            a, b = _MOVES[move]
            if a != b or student[i - 1] == teacher[j - 1]:
                spans.append((i - a, i, j - b, j))
            i, j = i - a, j - b
    return np.array(spans[::-1], dtype=np.int64).reshape(-1, 4)
