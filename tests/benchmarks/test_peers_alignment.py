"""What is counted of recorded groups of tokens: lost, misaligned, coarse, and predictions of different text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from split_tokenizers import split_tokenizer

from benchmarks.peers.alignment import ROW_RULES, Alignment, Group, compare, judge, own_groups
from benchmarks.peers.runs import RUNS
from xtoken_pl.alignment import SpanAligner
from xtoken_pl.tokenization import CanonicalVocabulary

# 12|3|ab|é and 1|23|a|b|Ã|© of the text below: ends at 2 3 5 7 and at 1 3 4 5 6 7 bytes, in common 3, 5 and 7.
STUDENT = CanonicalVocabulary.from_tokenizer(split_tokenizer(["12", "3", "ab", "Ã©"]))
TEACHER = CanonicalVocabulary.from_tokenizer(split_tokenizer(["1", "23", "a", "b", "Ã", "©"]))
STUDENT_IDS, TEACHER_IDS = (0, 1, 2, 3), (0, 1, 2, 3, 4, 5)
EXACT: list[Group] = [((0, 1), (0, 1)), ((2,), (2, 3)), ((3,), (4, 5))]
SOUND = Alignment(num_tokens=10, num_groups=3)


def judged(groups: list[Group], rule: str = "first") -> Alignment:
    return judge(STUDENT, TEACHER, STUDENT_IDS, TEACHER_IDS, groups, ROW_RULES[rule])


def test_exact_groups_have_no_fault() -> None:
    assert judged(EXACT) == SOUND


@pytest.mark.parametrize(("rule", "expected"), [("first", 0), ("observed", 3), ("bayesian", 3)])
def test_predictions_that_follow_different_text_are_counted(rule: str, expected: int) -> None:
    assert judged(EXACT, rule).num_unequal_rows == expected


@pytest.mark.parametrize("rule", ["first", "observed", "bayesian"])
def test_predictions_of_one_token_to_one_follow_the_same_text(rule: str) -> None:
    ids = (1, 1, 3)
    groups: list[Group] = [((place,), (place,)) for place in range(3)]
    expected = Alignment(num_tokens=6, num_groups=3)
    assert judge(STUDENT, STUDENT, ids, ids, groups, ROW_RULES[rule]) == expected


def test_tokens_of_no_group_are_lost() -> None:
    assert judged(EXACT[:2]) == replace(SOUND, num_groups=2, num_lost=3)


def test_tokens_that_have_no_bytes_are_not_counted() -> None:
    eos = STUDENT.roles["eos"], TEACHER.roles["eos"]
    ids = (*STUDENT_IDS, eos[0]), (*TEACHER_IDS, eos[1])
    assert judge(STUDENT, TEACHER, *ids, EXACT, ROW_RULES["first"]) == SOUND


def test_groups_of_different_bytes_are_misaligned_with_all_of_their_tokens() -> None:
    shifted: list[Group] = [((0, 1), (0, 1, 2)), ((2,), (3,)), EXACT[2]]  # 123 = 123a and ab = b
    assert judged(shifted).num_misaligned == 7


def test_equal_bytes_at_another_place_are_misaligned() -> None:
    groups: list[Group] = [((0,), (1,)), ((1,), (0,))]
    assert judge(STUDENT, STUDENT, (1, 1), (1, 1), groups, ROW_RULES["first"]).num_misaligned == 4


def test_groups_that_hold_a_common_end_are_coarse() -> None:
    everything: list[Group] = [((0, 1, 2, 3), (0, 1, 2, 3, 4, 5))]
    assert judged(everything) == replace(SOUND, num_groups=1, num_coarse=1)


def test_this_package_learns_from_all_spans_that_a_teacher_token_precedes() -> None:
    aligner = SpanAligner(STUDENT.tokenizer, TEACHER.tokenizer)
    found = [(tuple(own), tuple(other)) for own, other in own_groups(aligner, STUDENT_IDS, TEACHER_IDS)]
    assert found == EXACT[1:]


def test_recorded_windows_add_up_on_both_sides() -> None:
    window = {"student_ids": list(STUDENT_IDS), "teacher_ids": list(TEACHER_IDS), "groups": EXACT}
    theirs, ours = compare(STUDENT, TEACHER, [window, window], "observed")
    assert theirs == Alignment(num_tokens=20, num_groups=6, num_unequal_rows=6)
    assert ours == Alignment(num_tokens=20, num_groups=4, num_lost=8)


def test_every_peer_has_a_rule_for_its_predictions() -> None:
    assert all(run.merge in ROW_RULES for run in RUNS.values() if run.side != "ours")
