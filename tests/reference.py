r"""Slow references that the package is tested against, written from the formulas of the method and from nothing else.

Plain loops over tokens and vocabularies in float64: every line can be checked against the formula quoted in its
docstring. Section numbers are those of the description of the method.

References:
    [0] X-Token, 2026, https://arxiv.org/abs/2605.21699
"""

# N_s/N_t rows (tokens), S spans, V_s/V_t vocabulary sizes (student/teacher)
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

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


def generalized_kl(p_hat: Tensor, q_hat: Tensor, support: Tensor | None = None) -> Tensor:
    """Generalized KL of two non-negative vectors, in nats.

    Section 3: "D(p̂_T ‖ p̂_S) = Σ_v p̂_T[v]·log(p̂_T[v]/p̂_S[v]) - Σ p̂_T + Σ p̂_S
    = c_T·KL(p_T ‖ p_S) + c_T·log(c_T/c_S) - c_T + c_S."

    0 log 0 = 0. Infinite where q_hat is 0 and p_hat is not, unless `support` leaves that entry out: then all three
    sums, those of the two masses too, run over the support only.

    Shape:
        p_hat: [V]; q_hat: [V]; support: [V], bool; returns: [].
    """
    total = torch.zeros((), dtype=torch.float64)
    for v in range(len(p_hat)):
        if support is not None and not support[v]:
            continue
        p, q = p_hat[v].double(), q_hat[v].double()
        if p > 0:
            total = total + p * (p.log() - q.log())
        total = total - p + q
    return total


def continuation_probability(log_probs: Tensor, labels: Tensor, start: int, end: int) -> Tensor:
    """Probability of the span's tokens after its first, given the first.

    Section 3: "the continuation probability c = p(x_{i+1} | x_≤i)···p(x_j | x_<j) (c = 1 for one token)."

    Shape:
        log_probs: [N, V], row i predicts labels[i]; labels: [N]; returns: [].
    """
    probability = torch.ones((), dtype=torch.float64)
    for row in range(start + 1, end):
        probability = probability * log_probs[row, int(labels[row])].double().exp()
    return probability


def projection_kl(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    student_labels: Tensor,
    teacher_labels: Tensor,
    spans: Sequence[Span],
    projection: Tensor,
    merge: Literal["chain_rule", "mean"] = "chain_rule",
) -> Tensor:
    """P-KL of every span, in nats.

    Section 5: "P-KL: p̃_S = Wᵀ p̂_S over V_T; L = D(p̂_T ‖ p̃_S). No partition."
    Section 3, chain_rule: "Its merged distribution is p̂[v] = c · p(v | x_<i)"; D is summed over the support, the
    teacher tokens whose column of W has a non-zero entry, with nothing renormalized.
    Section 3, mean: "teacher log-probabilities averaged over the span's tokens, student *projected probabilities*
    averaged, P-KL renormalized within the vocabulary subset"; plain KL(teacher ‖ student) over the support.

    Shape:
        student_log_probs: [N_s, V_s], row i predicts student_labels[i]; teacher_log_probs: [N_t, V_t], likewise;
        labels: [N_s], [N_t]; spans over those rows; projection: [V_s, V_t]; returns: [S], float64.
    """
    support = (projection != 0).any(dim=0)  # [V_t]
    assert support.any(), "the projection must have a non-zero entry"
    projection = projection.double()
    losses: list[Tensor] = []
    for student_start, student_end, teacher_start, teacher_end in spans:
        if merge == "chain_rule":
            c_student = continuation_probability(student_log_probs, student_labels, student_start, student_end)
            c_teacher = continuation_probability(teacher_log_probs, teacher_labels, teacher_start, teacher_end)
            projected = projection.T @ (c_student * student_log_probs[student_start].double().exp())  # [V_t]
            losses.append(
                generalized_kl(c_teacher * teacher_log_probs[teacher_start].double().exp(), projected, support)
            )
        else:
            assert merge == "mean", f"merge must be chain_rule or mean, got {merge}"
            teacher_rows = [teacher_log_probs[row].double() for row in range(teacher_start, teacher_end)]
            student_rows = [
                projection.T @ student_log_probs[row].double().exp() for row in range(student_start, student_end)
            ]
            p = torch.stack(teacher_rows).mean(dim=0).exp()[support]
            q = torch.stack(student_rows).mean(dim=0)[support]
            losses.append(kl_divergence(p / p.sum(), q / q.sum()))
    return torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_v p[v]·log(p[v]/q[v]) of two distributions, in nats, with 0 log 0 = 0. Shape: [V], [V] -> []."""
    total = torch.zeros((), dtype=torch.float64)
    for v in range(len(p)):
        if p[v] > 0:
            total = total + p[v].double() * (p[v].double().log() - q[v].double().log())
    return total


def token_kl(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """KL(teacher ‖ student) of every token, in nats. Section 5: "KL: same tokenizer, token by token."

    Shape:
        student_log_probs: [N, V]; teacher_log_probs: [N, V]; returns: [N], float64.
    """
    losses = torch.zeros(len(student_log_probs), dtype=torch.float64)
    for n in range(len(student_log_probs)):
        losses[n] = kl_divergence(teacher_log_probs[n].double().exp(), student_log_probs[n].double().exp())
    return losses


def cross_entropy(student_log_probs: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) of every token, in nats: the L_CE of section 6, "L = sg(L_CE / L_KD)·L_KD + L_CE", not averaged.

    Shape:
        student_log_probs: [N, V], row i predicts labels[i]; labels: [N]; returns: [N], float64.
    """
    losses = torch.zeros(len(labels), dtype=torch.float64)
    for n in range(len(labels)):
        losses[n] = -student_log_probs[n, int(labels[n])].double()
    return losses
