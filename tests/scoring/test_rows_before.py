"""The teacher row before a span's: which blocks hold it, and what looks back at it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from loss_cases import CASES
from prefix_pairs import Pair, planners_of
from small_models import packing_tokenizer, splitting_tokenizer

from xtoken_pl import BytePrefixKL, ConfidenceWeighting
from xtoken_pl.data import collate

CASE = next(case for case in CASES if case.kind is BytePrefixKL)


def test_blocks_overlap_by_the_row_before() -> None:
    blocks = CASE.rows().cuts.blocks(1, 1)
    assert len(blocks) > 2
    for one, other in pairwise(blocks):
        assert one.student_rows.stop == other.student_rows.start
        assert one.spans["t"].stop == other.spans["t"].start
        assert one.teacher_rows["t"].stop == other.teacher_rows["t"].start + (other.num_rows("t") > 0)
        assert all(block.teacher_rows == block.pieces[0].teacher_rows for block in (one, other))


@pytest.mark.parametrize("memory", [1.0, 1e5, 1e9])
def test_the_row_before_counts_in_its_own_span_alone(memory: float) -> None:
    rows = CASE.rows()
    weighting = ConfidenceWeighting("entropy")
    scores = rows.evaluate(
        CASE.loss, rows.student, memory=memory, confidence=weighting.row_confidence, measures_nats=True
    )
    side = rows.block().teacher
    confidence = weighting.row_confidence(side.log_probs, side.labels)
    torch.testing.assert_close(scores.confidence["t"], side.sum_by_span(confidence), rtol=0, atol=1e-10)
    torch.testing.assert_close(scores.teacher_nats["t"], -side.log_likelihood(), rtol=0, atol=1e-10)


def test_a_window_does_not_look_back_at_the_one_before() -> None:
    pair = Pair.of(splitting_tokenizer(), packing_tokenizer())
    pair = pair.with_spans(lambda k: k < len(pair.spans) - 1)  # it ends with a token that has bytes, not with eos
    both = collate([pair.window] * 2, ["t"], planners_of(pair.loss)).teachers["t"].plan
    for kind in ("boundary", "inside"):
        once, twice = getattr(pair.plan, kind), getattr(both, kind)
        assert once.count("open") > 50
        for column in ("consumed", "low", "high", "excluding"):
            assert torch.equal(getattr(twice, column), getattr(once, column).repeat(2))
