"""The rows that losses of texts are tested on have every kind of place that these losses distinguish."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from loss_cases import LossRows, TextRows
from reference_units import own_texts
from slow_losses import spans_of
from small_models import packing_tokenizer, splitting_tokenizer
from vocabulary_relations import marginals_between, units_between

from xtoken_pl import BPM, SimCT

OF_ALL_KINDS = TextRows()
PACKS = TextRows(packing_tokenizer, splitting_tokenizer)
SPLITS = TextRows(splitting_tokenizer, packing_tokenizer)


def rows_of(text_rows: TextRows) -> LossRows:
    loss = BPM()
    text_rows.bind(loss)
    return text_rows(loss, "many", 1)


def places_of(text_rows: TextRows) -> Counter[str]:
    """How many places there are at boundaries and inside tokens, with a path along several teacher tokens or not."""
    rows, counts = rows_of(text_rows), Counter[str]()
    assert rows.pair is not None
    marginals = marginals_between(rows.pair.student.tokenizer, rows.pair.teacher.tokenizer)
    for span in spans_of(rows):
        for place in marginals.places((rows.labels[0].tolist(), rows.labels[1].tolist()), span):
            is_path = marginals.continuation(place, rows.teacher.log_softmax(-1)) is not None
            counts[f"{'inside' if place.consumed else 'boundary'}{', path' if is_path else ''}"] += 1
            counts["completion"] += not place.consumed and bool(marginals.completion_sets(place.observed))
    return counts


@pytest.mark.parametrize(
    ("text_rows", "kinds"),
    [
        (OF_ALL_KINDS, {"boundary", "boundary, path", "inside", "inside, path", "completion"}),
        (PACKS, {"boundary", "boundary, path", "completion"}),
        (SPLITS, {"boundary", "inside", "completion"}),
    ],
    ids=["all kinds", "packing", "splitting"],
)
def test_places_are_of_all_kinds(text_rows: TextRows, kinds: set[str]) -> None:
    assert {kind for kind, count in places_of(text_rows).items() if count} >= kinds


def test_some_completions_are_in_the_next_span_and_some_have_no_next_row() -> None:
    rows = rows_of(OF_ALL_KINDS)
    span = rows.spans.student_span.tolist()
    after = {(a < len(rows.spans), b < len(rows.spans), a == b) for a, b in pairwise(span)}
    assert {(True, True, True), (True, True, False), (True, False, False)} <= after


@pytest.mark.parametrize(("text_rows", "side"), [(PACKS, 0), (SPLITS, 1), (OF_ALL_KINDS, 0), (OF_ALL_KINDS, 1)])
def test_both_sides_have_texts_of_one_token_along_the_path(text_rows: TextRows, side: int) -> None:
    """``side`` writes the text in one token: 0 the student, 1 the teacher."""
    loss = SimCT()
    text_rows.bind(loss)
    rows = text_rows(loss, "many", 1)
    assert rows.pair is not None
    units = units_between(rows.pair.student.tokenizer, rows.pair.teacher.tokenizer)
    labels = rows.labels[0].tolist(), rows.labels[1].tolist()
    texts = [each for a, b, c, d in spans_of(rows) for each in own_texts(units, labels[0][a:b], labels[1][c:d])]
    assert sum(len(each[side]) == 1 for each in texts) > 5
