"""The linear merge of two token sequences over the bytes that they share.

Two byte streams are cut into *runs* of equal bytes (usually a single run: texts are rarely rewritten). Inside a run, an
*anchor* is a place where both sides end a token; between two neighbouring anchors of one run lies exactly one span.
Between anchors of different runs lies a rewritten *stretch*.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Consecutive equal symbols (bytes, or special roles from 256 on) after which two streams count as in step again. Seven
# 9-bit symbols fit into one 64-bit integer, so that windows are compared without collisions.
NUM_ANCHOR_SYMBOLS = 7
_SYMBOL_BITS = 9
_FIRST_WINDOW = 64  # symbols in which streams that differ are first compared
_MAX_COMPARED = 4096  # symbols beyond the window up to which the lengths of runs are compared
_MAX_DISTANCES = 64  # distances between the two sides at which a run is sought; repetitive text agrees at many

Run = tuple[int, int, int]  # first student symbol, first teacher symbol, number of equal symbols


def equal_runs(student: NDArray[np.uint16], teacher: NDArray[np.uint16]) -> list[Run]:
    """Cuts two symbol streams into runs of equal symbols, in order; the stretches between two runs were rewritten.

    The first run starts at (0, 0) and the last one ends at the ends of both streams; either may be empty.
    """
    if np.array_equal(student, teacher):
        return [(0, 0, len(student))]
    codes, other_codes = _codes(student), _codes(teacher)
    runs: list[Run] = []
    i = j = 0
    while True:
        length = _num_agreeing(student[i:], teacher[j:])
        runs.append((i, j, length))
        i, j = i + length, j + length
        if i == len(student) and j == len(teacher):
            return runs
        skip_student, skip_teacher = _resynchronize(student[i:], teacher[j:], codes[i:], other_codes[j:])
        i, j = i + skip_student, j + skip_teacher


def chained_runs(first: list[Run], second: list[Run]) -> list[Run]:
    """Finds the runs of equal symbols of the streams A and C, from those of A and B and those of B and C.

    Args:
        first: Runs of A and B, in order.
        second: Runs of B and C, in order.
    """
    runs: list[Run] = []
    left = right = 0
    while left < len(first) and right < len(second):
        (i, j, length), (other_j, k, other_length) = first[left], second[right]
        start, end = max(j, other_j), min(j + length, other_j + other_length)
        if start < end:
            runs.append((i + start - j, k + start - other_j, end - start))
        if j + length <= other_j + other_length:
            left += 1
        else:
            right += 1
    return runs


def anchors(
    runs: list[Run], student_ends: NDArray[np.int64], teacher_ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Finds the token boundaries that both sides share.

    Args:
        runs: Runs of equal symbols, in order, at least one.
        student_ends: ``[n]`` end of each student token in symbols, increasing.
        teacher_ends: ``[m]`` end of each teacher token in symbols, increasing.

    Returns:
        ``[A]`` student token index, ``[A]`` teacher token index (a span starts at these tokens, or ends before
        them) and ``[A]`` run index of each anchor. The first anchor is (0, 0) and the last one (n, m) if the runs are
        those of :func:`equal_runs`.
    """
    student_bounds = np.concatenate(([0], student_ends))
    teacher_bounds = np.concatenate(([0], teacher_ends))
    is_teacher_bound = np.zeros(int(teacher_bounds[-1]) + 1, dtype=bool)
    is_teacher_bound[teacher_bounds] = True
    parts: list[tuple[NDArray[np.int64], ...]] = []
    for run, (start, other_start, length) in enumerate(runs):
        low, high = np.searchsorted(student_bounds, (start, start + length + 1))
        shifted = student_bounds[low:high] - start + other_start
        is_shared = is_teacher_bound[shifted]
        student_index = np.flatnonzero(is_shared) + low
        teacher_index = np.searchsorted(teacher_bounds, shifted[is_shared])
        parts.append((student_index, teacher_index, np.full(len(student_index), run)))
    student_anchor, teacher_anchor, run_index = map(np.concatenate, zip(*parts, strict=True))
    return student_anchor, teacher_anchor, run_index


def _num_agreeing(student: NDArray[np.uint16], teacher: NDArray[np.uint16]) -> int:
    """Counts the equal symbols at the start of both streams; compares growing pieces, as a difference is often near."""
    limit = min(len(student), len(teacher))
    done, piece = 0, 256
    while done < limit:
        upper = min(done + piece, limit)
        differs = student[done:upper] != teacher[done:upper]
        first = int(differs.argmax())
        if differs[first]:
            return done + first
        done, piece = upper, piece * 4
    return limit


def _resynchronize(
    student: NDArray[np.uint16],
    teacher: NDArray[np.uint16],
    codes: NDArray[np.uint64],
    other_codes: NDArray[np.uint64],
) -> tuple[int, int]:
    """Finds how many symbols to skip on each side, with the smallest sum, until both streams agree again.

    They agree where `NUM_ANCHOR_SYMBOLS` symbols in a row are equal, or all symbols up to the end of both streams.

    Args:
        student: Rest of the student's symbols.
        teacher: Rest of the teacher's symbols.
        codes: Code of every window of the student's symbols (see :func:`_codes`).
        other_codes: Likewise for the teacher.
    """
    longest = max(len(student), len(teacher))
    window = _FIRST_WINDOW
    while True:
        count = window - NUM_ANCHOR_SYMBOLS + 1
        places = _shared_places(codes[:count], other_codes[:count])
        if places:
            limit = window + _MAX_COMPARED
            skip, other_skip, _ = _best_run(_runs_from(student[:limit], teacher[:limit], places))
            # A place beyond this window cannot be better: reaching it would skip more symbols.
            if skip + other_skip <= window - NUM_ANCHOR_SYMBOLS or window >= longest:
                return skip, other_skip
        if window >= longest:
            same = _num_agreeing(student[::-1], teacher[::-1])
            return len(student) - same, len(teacher) - same
        window *= 4


def _shared_places(codes: NDArray[np.uint64], other_codes: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """First places on both sides of each code that both have: the nearest place of each distance between the sides."""
    if len(codes) < 256:  # the usual case, in which numpy's sorting takes five times as long
        firsts = [
            {code: place for place, code in reversed([*enumerate(side.tolist())])} for side in (codes, other_codes)
        ]
        shared = [(place, firsts[1][code]) for code, place in firsts[0].items() if code in firsts[1]]
    else:
        _, first, other_first = np.intersect1d(codes, other_codes, return_indices=True)
        shared = list(zip(first.tolist(), other_first.tolist(), strict=True))
    nearest: dict[int, tuple[int, int]] = {}
    for place, other_place in sorted(shared):
        nearest.setdefault(place - other_place, (place, other_place))
    return sorted(nearest.values(), key=sum)[:_MAX_DISTANCES]


def _runs_from(student: NDArray[np.uint16], teacher: NDArray[np.uint16], places: list[tuple[int, int]]) -> list[Run]:
    """Extends places where both streams agree to whole runs."""
    runs: list[Run] = []
    for i, j in places:
        before = _num_agreeing(student[:i][::-1], teacher[:j][::-1])
        runs.append((i - before, j - before, before + _num_agreeing(student[i:], teacher[j:])))
    return runs


def _best_run(runs: list[Run]) -> Run:
    """Selects the run that is reached with the fewest skipped symbols; of two that overlap, the longer one.

    Repetitive text also agrees with itself at a distance, but in shorter runs.
    """
    best, *others = sorted(runs, key=lambda run: (run[0] + run[1], -run[2]))
    for run in others:
        overlaps = run[0] < best[0] + best[2] or run[1] < best[1] + best[2]
        if overlaps and run[2] > best[2]:
            best = run
    return best


def _codes(symbols: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """Packs every window of `NUM_ANCHOR_SYMBOLS` symbols into one integer."""
    count = len(symbols) - NUM_ANCHOR_SYMBOLS + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    one = symbols.astype(np.uint64)
    two = (one[:-1] << np.uint64(_SYMBOL_BITS)) | one[1:]
    four = (two[:-2] << np.uint64(2 * _SYMBOL_BITS)) | two[2:]
    return (four[:count] << np.uint64(3 * _SYMBOL_BITS)) | (two[4 : 4 + count] << np.uint64(_SYMBOL_BITS)) | one[6:]
