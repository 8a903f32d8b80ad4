"""The references of the teachers' weights against values worked out by hand."""

import math

import pytest
from reference_weights import confidence_weights, confidence_weights_per_row

LOG_2 = math.log(2)


def test_confidence_weights_known_values() -> None:
    # scores -4/4 = -1 and -6/2 = -3 (not the means of -1.5 and -3): e^(0.5·2) = e apart
    scores, units = [[-1.0, -3.0], [-6.0]], [[3.0, 1.0], [2.0]]
    expected = [math.e / (math.e + 1), 1 / (math.e + 1)]
    assert confidence_weights(scores, units, [0.5, 0.5], 0.5) == pytest.approx(expected)
    expected = [math.e / (math.e + 3), 3 / (math.e + 3)]
    assert confidence_weights(scores, units, [0.25, 0.75], 0.5) == pytest.approx(expected)
    assert confidence_weights(scores, units, [0.25, 0.75], 0.0) == pytest.approx([0.25, 0.75])
    assert confidence_weights(scores, units, [0.25, 0.75], 1.0, hard=True) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("scores", "priors", "soft", "hard"),
    [
        ([-1.0, None, -1.0], [1.0, 1.0, 3.0], [0.25, 0.0, 0.75], [1.0, 0.0, 0.0]),  # a tie: the first
        ([-1.0, -2.0, -2.0], [0.0, 0.2, 0.2], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]),  # the best has prior 0
        ([None, None, -900.0], [1.0, 1.0, 0.1], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]),
        ([None, -1.0, None], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    ],
)
def test_confidence_weights_of_missing_teachers(
    scores: list[float | None], priors: list[float], soft: list[float], hard: list[float]
) -> None:
    span_scores: list[list[float]] = [[] if score is None else [score] for score in scores]
    span_units: list[list[float]] = [[] if score is None else [1.0] for score in scores]
    assert confidence_weights(span_scores, span_units, priors, 1.0) == pytest.approx(soft)
    assert confidence_weights(span_scores, span_units, priors, 1.0, hard=True) == hard
    rows = [[score] for score in scores]
    assert [weight for (weight,) in confidence_weights_per_row(rows, priors, 1.0)] == pytest.approx(soft)
    assert [weight for (weight,) in confidence_weights_per_row(rows, priors, 1.0, hard=True)] == hard


def test_confidence_weights_per_row_known_values() -> None:
    scores: list[list[float | None]] = [[0.0, None, -1.0], [-LOG_2, -5.0, -1.0]]
    weights = confidence_weights_per_row(scores, [1.0, 1.0], 2.0)
    assert weights[0] == pytest.approx([0.8, 0.0, 0.5])  # 1 against 2^-2
    assert weights[1] == pytest.approx([0.2, 1.0, 0.5])
