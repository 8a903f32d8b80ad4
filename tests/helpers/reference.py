r"""Slow references that the package is tested against, written from the formulas of the method and from nothing else.

Plain loops over tokens and vocabularies in float64: every line can be checked against the formula quoted in its
docstring. Section numbers are those of the description of the method.

References:
    [0] X-Token, 2026, https://arxiv.org/abs/2605.21699
"""

# N_s/N_t rows (tokens), S spans, V_s/V_t vocabulary sizes (student/teacher)
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import cache

import torch
from torch import Tensor

Span = tuple[int, int, int, int]  # student_start, student_end, teacher_start, teacher_end; ends are exclusive


def spans_by_bytes(student_tokens: list[bytes], teacher_tokens: list[bytes]) -> list[Span]:
    """Spans of two tokenizations of the same bytes.

    Section 2: "The same text as student tokens s_1..s_n and teacher tokens t_1..t_m is cut into *spans*: smallest
    groups of consecutive tokens on both sides that cover the same bytes. Where both byte streams are equal the spans
    are given by the common token ends."

    Every pair of a student end and a teacher end is compared: O(n·m), on purpose. Tokens are not empty.
    """
    assert b"".join(student_tokens) == b"".join(teacher_tokens), "the two sides must cover the same bytes"
    assert all([*student_tokens, *teacher_tokens]), "tokens must not be empty"
    spans: list[Span] = []
    student_start = teacher_start = 0
    for student_end in range(1, len(student_tokens) + 1):
        for teacher_end in range(1, len(teacher_tokens) + 1):
            num_student_bytes = len(b"".join(student_tokens[:student_end]))
            num_teacher_bytes = len(b"".join(teacher_tokens[:teacher_end]))
            if num_student_bytes == num_teacher_bytes:  # a common token end
                spans.append((student_start, student_end, teacher_start, teacher_end))
                student_start, teacher_start = student_end, teacher_end
    return spans


def spans_by_dynamic_programme(
    student_tokens: list[bytes], teacher_tokens: list[bytes], max_span: int = 4
) -> tuple[float, list[Span]]:
    """Best score and spans of the paper's dynamic programme, for byte streams that differ.

    Section 2: "D(i,j) = max of
    D(i-1,j-1) + (+3 if s_i = t_j else -3);
    D(i-1,j-k) + 1.5·k if s_i = t_{j-k+1..j}, 2 ≤ k ≤ L;
    D(i-k,j-1) + 1.5·k if s_{i-k+1..i} = t_j, 2 ≤ k ≤ L;
    D(i-1,j) - 1.5; D(i,j-1) - 1.5, with D(i,0) = -1.5·i, D(0,j) = -1.5·j, L = 4.
    Gaps and mismatches are *not* spans."

    Ties are broken in the backtrace, which walks from the last tokens to the first. Of the moves that reach the best
    score it takes the first in this order: one-to-one (match or mismatch); one student token to k teacher tokens,
    smaller k first; k student tokens to one teacher token, smaller k first; a student token left alone, D(i-1,j);
    a teacher token left alone, D(i,j-1). Scores are multiples of 1.5, exact in floating point, so ties are exact.

    Recursive, hence for n + m of a few hundred tokens at most.
    """

    def moves(i: int, j: int) -> list[tuple[float, int, int, bool]]:
        """(total score, i before, j before, is a span) of every move into (i, j), in the order of preference."""
        is_match = student_tokens[i - 1] == teacher_tokens[j - 1]
        found = [(best(i - 1, j - 1) + (3.0 if is_match else -3.0), i - 1, j - 1, is_match)]
        for k in range(2, min(max_span, j) + 1):
            if student_tokens[i - 1] == b"".join(teacher_tokens[j - k : j]):
                found.append((best(i - 1, j - k) + 1.5 * k, i - 1, j - k, True))
        for k in range(2, min(max_span, i) + 1):
            if b"".join(student_tokens[i - k : i]) == teacher_tokens[j - 1]:
                found.append((best(i - k, j - 1) + 1.5 * k, i - k, j - 1, True))
        found.append((best(i - 1, j) - 1.5, i - 1, j, False))
        found.append((best(i, j - 1) - 1.5, i, j - 1, False))
        return found

    @cache
    def best(i: int, j: int) -> float:
        if i == 0 or j == 0:
            return -1.5 * (i + j)
        return max(score for score, *_ in moves(i, j))

    spans: list[Span] = []
    i, j = len(student_tokens), len(teacher_tokens)
    while i > 0 and j > 0:  # with one side used up only gaps are left
        _, i_before, j_before, is_span = next(move for move in moves(i, j) if move[0] == best(i, j))
        if is_span:
            spans.append((i_before, i, j_before, j))
        i, j = i_before, j_before
    return best(len(student_tokens), len(teacher_tokens)), spans[::-1]


def projection_rows(
    student_tokens: Sequence[bytes | None],
    teacher_tokens: Sequence[bytes | None],
    encode_bytes: Callable[[bytes], list[int] | None],
    student_roles: dict[int, str],
    teacher_roles: dict[int, str],
    beta: float = 0.9,
    gamma: float = 0.1,
    max_tokens: int = 4,
    top: int = 4,
) -> dict[int, dict[int, float]]:
    """Rows of the projection W as {student id: {teacher id: weight}}; zero rows are absent.

    Section 4: "Pass 1, exact: W[s,t] = 1 where the canonical bytes (or the special roles) are equal; the lowest
    teacher id on a tie. Pass 2, multi-token: every other student token is re-tokenized under the teacher, bytes in,
    τ_0..τ_{l-1}; if 2 ≤ l ≤ 4 (or l = 1 by another spelling): W[s,τ_i] = β·γ^i, (β,γ) = (0.9, 0.1); the row keeps
    its top 4 and is normalized to sum 1. Duplicates within a row add up. l > 4 leaves the row zero."
    Section 1: "special tokens carry no bytes: they have a role and match by role only."

    Args:
        student_tokens: Canonical bytes by student id; None for a special token.
        teacher_tokens: Canonical bytes by teacher id; None for a special token.
        encode_bytes: Teacher ids of some bytes, taken as they are; None where the teacher cannot encode them.
        student_roles: Role by id of the special student tokens that have one.
        teacher_roles: Role by id of the special teacher tokens that have one.
        beta: Weight of the first teacher token, before normalization.
        gamma: Factor from one teacher token to the next.
        max_tokens: A student token of more teacher tokens than this has a zero row.
        top: Entries kept in a row, the heaviest first, then the lowest teacher id. Duplicates are added up before.
    """
    assert all(student_tokens[s] is None for s in student_roles), "a student token with a role must carry no bytes"
    assert all(teacher_tokens[t] is None for t in teacher_roles), "a teacher token with a role must carry no bytes"
    rows: dict[int, dict[int, float]] = {}
    for s, student_bytes in enumerate(student_tokens):
        exact: list[int] = []
        for t, teacher_bytes in enumerate(teacher_tokens):
            if student_bytes is not None and student_bytes == teacher_bytes:
                exact.append(t)
            if s in student_roles and student_roles[s] == teacher_roles.get(t):
                exact.append(t)
        if exact:  # pass 1
            rows[s] = {min(exact): 1.0}
            continue
        if student_bytes is None:  # a special token without a counterpart
            continue
        encoded = encode_bytes(student_bytes)
        if encoded is None or not 1 <= len(encoded) <= max_tokens:
            continue
        row: dict[int, float] = {}  # pass 2
        for i, t in enumerate(encoded):
            row[t] = row.get(t, 0.0) + beta * gamma**i
        kept = sorted(row, key=lambda t: (-row[t], t))[:top]
        total = sum(row[t] for t in kept)
        rows[s] = {t: row[t] / total for t in kept}
    return rows


def dense_projection(rows: dict[int, dict[int, float]], num_student: int, num_teacher: int) -> Tensor:
    """The projection as a matrix. Section 4: "The projection matrix W [V_S, V_T]". Returns: [V_s, V_t], float64."""
    projection = torch.zeros(num_student, num_teacher, dtype=torch.float64)
    for s, row in rows.items():
        for t, weight in row.items():
            projection[s, t] = weight
    return projection


def common_pairs(
    student_tokens: Sequence[bytes | None],
    teacher_tokens: Sequence[bytes | None],
    student_roles: dict[int, str],
    teacher_roles: dict[int, str],
    rows: dict[int, dict[int, float]] | None = None,
    student_byte_pieces: AbstractSet[int] = frozenset(),
    teacher_byte_pieces: AbstractSet[int] = frozenset(),
) -> list[tuple[int, int]]:
    """The common set C as (student id, teacher id), one-to-one, sorted by student id.

    Section 5: "common set C = pairs with equal text", and for H-KL "C enlarged by (s, argmax_t W[s,t]) (a teacher
    token keeps the student token of the highest weight, then of the lowest id; exact pairs always stay)".

    Every student token wants one teacher token at most. Exact: the teacher token of equal bytes (no byte piece if it
    can be helped, then the lowest id) or the lowest one of the same role. Not exact, and only with `rows`: the
    heaviest teacher token of its row, the lowest id on a tie. A teacher token then keeps, of all student tokens that
    want it, an exact one first, then the highest weight, then no byte piece, then the lowest id. The others are not
    common: they do not turn to their second choice.

    Args:
        student_tokens: Canonical bytes by student id; None for a special token or an id that does not exist.
        teacher_tokens: Canonical bytes by teacher id, likewise.
        student_roles: Role by id of the special student tokens that have one.
        teacher_roles: Role by id of the special teacher tokens that have one.
        rows: The projection as {student id: {teacher id: weight}}, for the enlarged set; None for the strict one.
        student_byte_pieces: Student ids that spell a raw byte, such as <0x41>.
        teacher_byte_pieces: Teacher ids that spell a raw byte.
    """
    assert all(student_tokens[s] is None for s in student_roles), "a student token with a role must carry no bytes"
    assert all(teacher_tokens[t] is None for t in teacher_roles), "a teacher token with a role must carry no bytes"
    wanted_by: dict[int, list[tuple[bool, float, bool, int]]] = {}  # teacher id -> student tokens, the best sorts first
    for s, student_bytes in enumerate(student_tokens):
        same_bytes = [t for t, b in enumerate(teacher_tokens) if student_bytes is not None and b == student_bytes]
        same_role = [t for t, role in teacher_roles.items() if s in student_roles and role == student_roles[s]]
        row = {} if rows is None else rows.get(s, {})
        if same_bytes:
            is_exact, weight, t = True, 1.0, min(same_bytes, key=lambda t: (t in teacher_byte_pieces, t))
        elif same_role:
            is_exact, weight, t = True, 1.0, min(same_role)
        elif row:
            weight = max(row.values())
            is_exact, t = False, min(t for t in row if row[t] == weight)
        else:
            continue
        wanted_by.setdefault(t, []).append((not is_exact, -weight, s in student_byte_pieces, s))
    return sorted((min(candidates)[-1], t) for t, candidates in wanted_by.items())
