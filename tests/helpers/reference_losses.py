r"""Slow references of the losses, written from the formulas alone.

Plain loops over spans and vocabularies in float64, as in `reference`: every line can be checked against the formula
quoted in its docstring. Section numbers are those of the description of the method. All losses are in nats and are
differentiable with respect to the student's log-probabilities.

Notation: a hat marks a span's merged vector, p̂ = c·p (see `merge_span`); p is the teacher's, q the student's.
"""

# N_s/N_t rows (tokens), S spans, V_s/V_t vocabulary sizes (student/teacher)
from collections.abc import Sequence
from typing import Literal

import torch
from reference import Span
from torch import Tensor

Divergence = Literal["forward", "reverse", "jensen_shannon"]
Merge = Literal["chain_rule", "mean"]


def divergence(p_hat: Tensor, q_hat: Tensor, kind: Divergence, p_total: Tensor, q_total: Tensor) -> Tensor:
    """Divergence of two non-negative vectors over the same columns, p the teacher's and q the student's, in nats.

    forward: Σ p·log(p/q) - p_total + q_total;
    reverse: Σ q·log(q/p) - q_total + p_total;
    jensen_shannon: ½ Σ p·log(p/m) + ½ Σ q·log(q/m), m = (p + q)/2, without totals (theirs cancel).

    0 log 0 = 0. Infinite where the vector under the fraction is 0 and the other is not.

    Shape:
        p_hat: [V]; q_hat: [V]; p_total: []; q_total: []; returns: [].
    """
    assert len(p_hat) == len(q_hat), "both vectors must have the same columns"
    total = torch.zeros((), dtype=torch.float64)
    for v in range(len(p_hat)):
        p, q = p_hat[v].double(), q_hat[v].double()
        if kind == "forward" and p > 0:
            total = total + p * (p.log() - q.log())
        if kind == "reverse" and q > 0:
            total = total + q * (q.log() - p.log())
        if kind == "jensen_shannon":
            m = (p + q) / 2
            if p > 0:
                total = total + p * (p.log() - m.log()) / 2
            if q > 0:
                total = total + q * (q.log() - m.log()) / 2
    if kind == "forward":
        return total - p_total + q_total
    if kind == "reverse":
        return total - q_total + p_total
    assert kind == "jensen_shannon", f"kind must be forward, reverse or jensen_shannon, got {kind}"
    return total


def rank_distance(p: Tensor, q: Tensor) -> Tensor:
    """‖sort↓(p) - sort↓(q)‖₁, the shorter one padded with zeros. Shape: [A], [B] -> []; A and B may be 0."""
    p_order = sorted(range(len(p)), key=lambda i: -float(p[i].detach()))
    q_order = sorted(range(len(q)), key=lambda i: -float(q[i].detach()))
    zero = torch.zeros((), dtype=torch.float64)
    total = zero
    for rank in range(max(len(p), len(q))):
        p_value = p[p_order[rank]].double() if rank < len(p) else zero
        q_value = q[q_order[rank]].double() if rank < len(q) else zero
        total = total + (p_value - q_value).abs()
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


def merge_span(log_probs: Tensor, labels: Tensor, start: int, end: int, merge: Merge) -> tuple[Tensor, Tensor]:
    """Merged vector p̂ of one side of a span, and its total c.

    Section 3, chain_rule: "p̂[v] = c · p(v | x_<i)", with "c = p(x_{i+1} | x_≤i)···p(x_j | x_<j)".
    Section 3, mean: "log-probabilities averaged" over the span's rows; a softmax over the side's whole vocabulary
    makes them a distribution again, so c = 1.

    Shape:
        log_probs: [N, V], row i predicts labels[i]; labels: [N]; returns: [V], [].
    """
    assert start < end, "a span must have a token on each side"
    if merge == "chain_rule":
        c = continuation_probability(log_probs, labels, start, end)
        return c * log_probs[start].double().exp(), c
    assert merge == "mean", f"merge must be chain_rule or mean, got {merge}"
    total = torch.zeros(log_probs.shape[1], dtype=torch.float64)
    for row in range(start, end):
        total = total + log_probs[row].double()
    return torch.softmax(total / (end - start), dim=0), torch.ones((), dtype=torch.float64)


def hybrid(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    student_labels: Tensor,
    teacher_labels: Tensor,
    spans: Sequence[Span],
    pairs: Sequence[tuple[int, int]],
    student_rest: Sequence[int],
    teacher_rest: Sequence[int],
    kl_weight: float = 1.0,
    uld_weight: float = 1.0,
    merge: Merge = "chain_rule",
    kind: Divergence = "forward",
) -> Tensor:
    """GOLD, or H-KL with an enlarged common set, of every span, in nats.

    Section 5: "common set C = pairs with equal text; uncommon rest U_S, U_T.
    L = λ_KL·Σ_{(s,t)∈C} p̂_T[t]·(log p̂_T[t] - log p̂_S[s]) + λ_ULD·‖sort↓(p̂_S|U_S) - sort↓(p̂_T|U_T)‖₁,
    full-vocabulary softmax, shorter side padded with zeros". The first sum is the generalized divergence of section 3:
    its totals are the full sums c_T and c_S, not the masses of the pairs, and cancel in a one-to-one span.

    Args:
        student_log_probs: The student's log-probabilities.
        teacher_log_probs: The teacher's log-probabilities.
        student_labels: The tokens that the student's rows predict.
        teacher_labels: The tokens that the teacher's rows predict.
        spans: Spans over the rows of both sides.
        pairs: The common set C, as (student id, teacher id).
        student_rest: Student ids of U_S.
        teacher_rest: Teacher ids of U_T.
        kl_weight: λ_KL.
        uld_weight: λ_ULD.
        merge: How the rows of a span become one vector.
        kind: Divergence over the pairs.

    Shape:
        student_log_probs: [N_s, V_s], row i predicts student_labels[i]; teacher_log_probs: [N_t, V_t], likewise;
        labels: [N_s], [N_t]; returns: [S], float64.
    """
    student_common = [s for s, _ in pairs]
    teacher_common = [t for _, t in pairs]
    losses: list[Tensor] = []
    for student_start, student_end, teacher_start, teacher_end in spans:
        q_hat, c_student = merge_span(student_log_probs, student_labels, student_start, student_end, merge)
        p_hat, c_teacher = merge_span(teacher_log_probs, teacher_labels, teacher_start, teacher_end, merge)
        common = divergence(p_hat[teacher_common], q_hat[student_common], kind, c_teacher, c_student)
        rest = rank_distance(q_hat[list(student_rest)], p_hat[list(teacher_rest)])
        losses.append(kl_weight * common + uld_weight * rest)
    return torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)


def uld(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    student_labels: Tensor,
    teacher_labels: Tensor,
    spans: Sequence[Span],
    merge: Merge = "chain_rule",
) -> Tensor:
    """ULD of every span. Section 5: "‖sort↓(p̂_S) - sort↓(p̂_T)‖₁ over the whole vocabularies."

    Shape:
        student_log_probs: [N_s, V_s], row i predicts student_labels[i]; teacher_log_probs: [N_t, V_t], likewise;
        labels: [N_s], [N_t]; returns: [S], float64.
    """
    losses: list[Tensor] = []
    for student_start, student_end, teacher_start, teacher_end in spans:
        q_hat, _ = merge_span(student_log_probs, student_labels, student_start, student_end, merge)
        p_hat, _ = merge_span(teacher_log_probs, teacher_labels, teacher_start, teacher_end, merge)
        losses.append(rank_distance(q_hat, p_hat))
    return torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)


def projection_divergence(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    student_labels: Tensor,
    teacher_labels: Tensor,
    spans: Sequence[Span],
    projection: Tensor,
    merge: Merge = "chain_rule",
    kind: Divergence = "forward",
) -> Tensor:
    """P-KL of every span, and its reverse and Jensen-Shannon variants, in nats.

    Section 5: "P-KL: p̃_S = Wᵀ p̂_S over V_T; L = D(p̂_T ‖ p̃_S)." The support are the columns of W with a non-zero
    entry; both vectors are cut to it.
    chain_rule: nothing is renormalized, the totals are the sums over the support.
    Section 3, mean: "teacher log-probabilities averaged over the span's tokens, student *projected probabilities*
    averaged, P-KL renormalized within the vocabulary subset": both sum to 1 over the support, so both totals are 1.

    Shape:
        student_log_probs: [N_s, V_s], row i predicts student_labels[i]; teacher_log_probs: [N_t, V_t], likewise;
        labels: [N_s], [N_t]; spans over those rows; projection: [V_s, V_t]; returns: [S], float64.
    """
    projection = projection.double()
    support = [t for t in range(projection.shape[1]) if any(projection[:, t] != 0)]
    assert support, "the projection must have a non-zero entry"
    one = torch.ones((), dtype=torch.float64)
    losses: list[Tensor] = []
    for student_start, student_end, teacher_start, teacher_end in spans:
        if merge == "chain_rule":
            q_hat, _ = merge_span(student_log_probs, student_labels, student_start, student_end, merge)
            p_hat, _ = merge_span(teacher_log_probs, teacher_labels, teacher_start, teacher_end, merge)
            q, p = (projection.T @ q_hat)[support], p_hat[support]
            losses.append(divergence(p, q, kind, p.sum(), q.sum()))
        else:
            assert merge == "mean", f"merge must be chain_rule or mean, got {merge}"
            projected = torch.zeros(projection.shape[1], dtype=torch.float64)  # [V_t]
            for row in range(student_start, student_end):
                projected = projected + projection.T @ student_log_probs[row].double().exp()
            teacher_total = torch.zeros(projection.shape[1], dtype=torch.float64)  # [V_t]
            for row in range(teacher_start, teacher_end):
                teacher_total = teacher_total + teacher_log_probs[row].double()
            q = (projected / (student_end - student_start))[support]
            p = (teacher_total / (teacher_end - teacher_start)).exp()[support]
            losses.append(divergence(p / p.sum(), q / q.sum(), kind, one, one))
    return torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)


def token_divergence(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    student_labels: Tensor,
    teacher_labels: Tensor,
    spans: Sequence[Span],
    merge: Merge = "chain_rule",
    kind: Divergence = "forward",
) -> Tensor:
    """Divergence of every span where both sides have the same vocabulary, in nats.

    Section 3: "D(p̂_T ‖ p̂_S) = Σ_v p̂_T[v]·log(p̂_T[v]/p̂_S[v]) - Σ p̂_T + Σ p̂_S", with the sums c_T and c_S.

    Shape:
        student_log_probs: [N_s, V], row i predicts student_labels[i]; teacher_log_probs: [N_t, V], likewise;
        labels: [N_s], [N_t]; returns: [S], float64.
    """
    losses: list[Tensor] = []
    for student_start, student_end, teacher_start, teacher_end in spans:
        q_hat, c_student = merge_span(student_log_probs, student_labels, student_start, student_end, merge)
        p_hat, c_teacher = merge_span(teacher_log_probs, teacher_labels, teacher_start, teacher_end, merge)
        losses.append(divergence(p_hat, q_hat, kind, c_teacher, c_student))
    return torch.stack(losses) if losses else torch.zeros(0, dtype=torch.float64)


def cross_entropy(student_log_probs: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) of every token, in nats: the L_CE of section 6, "L = sg(L_CE / L_KD)·L_KD + L_CE", not averaged.

    Shape:
        student_log_probs: [N, V], row i predicts labels[i]; labels: [N]; returns: [N], float64.
    """
    losses = torch.zeros(len(labels), dtype=torch.float64)
    for n in range(len(labels)):
        losses[n] = -student_log_probs[n, int(labels[n])].double()
    return losses
