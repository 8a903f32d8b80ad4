"""Slow references of the teachers' weights, in plain Python floats, written from the formulas alone.

Section numbers are those of the description of the method.
"""

# N rows (student tokens), M teachers
import math
from collections.abc import Sequence


def confidence_weights(
    span_scores: Sequence[Sequence[float]],
    span_units: Sequence[Sequence[float]],
    priors: Sequence[float],
    sharpness: float,
    hard: bool = False,
) -> list[float]:
    """Weight of every teacher by its confidence over the spans of a batch.

    Section 6: "confidence-adaptive: softmax(κ·score_m)". Here with priors: α_m = prior_m·exp(κ·score_m) / Σ over
    teachers, score_m = Σ scores / Σ units over the spans of teacher m. A teacher without spans, or of prior 0, has
    weight 0 and is left out of the sum; all weights are 0 where no teacher is left.

    Args:
        span_scores: For every teacher, the score of each of its spans: a sum over the span's tokens.
        span_units: For every teacher, the units (bytes or tokens) of each of its spans.
        priors: Weight of every teacher before its confidence is known, >= 0.
        sharpness: κ.
        hard: 1 for the best score (the first on a tie) instead of the softmax, whatever the priors above 0.
    """
    assert len(span_scores) == len(span_units) == len(priors), "scores, units and priors must be of the same teachers"
    scores: list[float | None] = []
    for teacher_scores, teacher_units in zip(span_scores, span_units, strict=True):
        assert len(teacher_scores) == len(teacher_units), "every span must have a score and its units"
        scores.append(sum(teacher_scores) / sum(teacher_units) if len(teacher_scores) > 0 else None)
    return _softmax_of_scores(scores, priors, sharpness, hard)


def confidence_weights_per_row(
    row_scores: Sequence[Sequence[float | None]],
    priors: Sequence[float],
    sharpness: float,
    hard: bool = False,
) -> list[list[float]]:
    """Weights of the teachers by their confidence, at every student token on its own.

    The softmax of `confidence_weights`, once per row. A score is None where no span of that teacher covers the token.

    Shape:
        row_scores: [M][N]; priors: [M]; returns: [M][N].
    """
    num_rows = len(row_scores[0])
    assert all(len(scores) == num_rows for scores in row_scores), "every teacher must have the same rows"
    weights: list[list[float]] = [[] for _ in row_scores]
    for n in range(num_rows):
        for m, weight in enumerate(_softmax_of_scores([scores[n] for scores in row_scores], priors, sharpness, hard)):
            weights[m].append(weight)
    return weights


def _softmax_of_scores(
    scores: Sequence[float | None], priors: Sequence[float], sharpness: float, hard: bool
) -> list[float]:
    """α_m = prior_m·exp(κ·score_m) / Σ over the teachers with a score and a prior > 0; 0 for the others."""
    known = {
        m: score for m, (score, prior) in enumerate(zip(scores, priors, strict=True)) if score is not None and prior > 0
    }
    weights = [0.0] * len(scores)
    if not known:
        return weights
    best = max(known.values())
    if hard:
        weights[min(m for m, score in known.items() if score == best)] = 1.0
        return weights
    # Dividing numerator and denominator by exp(κ·best) changes nothing and keeps them off 0 and infinity.
    numerators = {m: priors[m] * math.exp(sharpness * (score - best)) for m, score in known.items()}
    for m, numerator in numerators.items():
        weights[m] = numerator / sum(numerators.values())
    return weights
