"""The coverage audit: categories, known counts, recommendations, the figure."""

from __future__ import annotations

from dataclasses import replace
from pydoc_data.topics import topics
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from fake_vocabularies import FakeVocabulary
from transformers import PreTrainedTokenizerFast

from xtoken_pl import (
    CanonicalVocabulary,
    CoverageAudit,
    SpanAligner,
    SpanStatistics,
    build_projection,
    recommend_loss,
)
from xtoken_pl.alignment import Spans
from xtoken_pl.audit import CATEGORIES, CHOICES, Category, Recommendation, categorize, table
from xtoken_pl.audit.report import figure_of
from xtoken_pl.projection import VocabularyPartition
from xtoken_pl.specs import AutoLoss


def category_of(text: bytes | None) -> str:
    (index,) = categorize(cast(Any, FakeVocabulary([text])))
    return CATEGORIES[index]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"7", "numerals_1"),
        (b" 42", "numerals_2"),
        (b"007", "numerals_3"),
        (b"2024", "numerals_4_or_more"),
        (b" the", "letters"),
        (b"A", "letters"),
        (b"\xc3\xa9t\xc3\xa9", "non_ascii"),
        (b"\xc3", "non_ascii"),
        ("１２".encode(), "non_ascii"),
        (b".", "punctuation"),
        (b" ==", "punctuation"),
        (b" ", "whitespace"),
        (b"\n\n\t", "whitespace"),
        (b"x1", "mixed"),
        (b"  a", "mixed"),
        (b"_id", "mixed"),
        (b"\x00", "mixed"),
        (None, "special"),
    ],
)
def test_category_of_a_token(text: bytes | None, expected: str) -> None:
    assert category_of(text) == expected


def test_unused_ids_have_no_category() -> None:
    assert categorize(cast(Any, FakeVocabulary([b"a", None, b"b"], holes=[1]))).tolist()[1] == -1


@pytest.fixture(scope="module")
def audits(
    llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast, o200k: PreTrainedTokenizerFast
) -> dict[str, CoverageAudit]:
    student = CanonicalVocabulary.from_tokenizer(llama3)
    text = topics["numbers"] + topics["strings"]
    return {
        name: CoverageAudit.from_vocabularies(student, CanonicalVocabulary.from_tokenizer(tokenizer), text=text)
        for name, tokenizer in (("qwen3", qwen3), ("o200k", o200k))
    }


@pytest.mark.parametrize(
    ("teacher", "loss", "two_digits", "three_digits"),
    [("qwen3", "ProjectionKL", 0, 0), ("o200k", "HybridKL", 100, 1000)],
)
def test_published_recommendations_and_counts(
    audits: dict[str, CoverageAudit], teacher: str, loss: str, two_digits: int, three_digits: int
) -> None:
    audit = audits[teacher]
    assert audit.paper_recommendation.loss == loss
    rows = audit.categories
    assert (rows["numerals_1"].count, rows["numerals_1"].strict) == (10, 10)
    assert (rows["numerals_2"].count, rows["numerals_2"].strict) == (100, two_digits)
    assert (rows["numerals_3"].count, rows["numerals_3"].strict) == (1000, three_digits)
    assert (
        f"{two_digits:,} of 100 numerals_2, {three_digits:,} of 1,000 numerals_3" in audit.paper_recommendation.reason
    )


def test_categories_add_up_to_the_vocabulary_the_partitions_and_w(audits: dict[str, CoverageAudit]) -> None:
    audit = audits["qwen3"]
    assert audit.total.count == audit.num_student == 128_256
    assert audit.num_teacher == 151_669
    assert audit.total.strict == len(audit.strict) == 109_568
    assert audit.total.enlarged == len(audit.enlarged)
    assert audit.total.covered == 109_569 + 17_991  # exact and multi-token rows of W
    assert audit.total.unmapped == 696
    for row in audit.categories.values():
        assert row.strict <= row.enlarged <= row.covered <= row.count


def test_span_statistics_agree_with_a_loop(
    audits: dict[str, CoverageAudit], llama3: PreTrainedTokenizerFast, qwen3: PreTrainedTokenizerFast
) -> None:
    text = topics["numbers"] + topics["strings"]
    ids = [CanonicalVocabulary.from_tokenizer(tokenizer).encode([text])[0] for tokenizer in (llama3, qwen3)]
    kinds = dict.fromkeys([(True, True), (True, False), (False, True), (False, False)], 0)
    for a, b, c, d in SpanAligner(llama3, qwen3).align(*ids).to_array().tolist():
        kinds[b - a == 1, d - c == 1] += 1
    spans = audits["qwen3"].spans
    assert spans is not None
    assert (spans.num_student_tokens, spans.num_teacher_tokens) == (len(ids[0]), len(ids[1]))
    assert [spans.one_to_one, spans.one_to_many, spans.many_to_one, spans.many_to_many] == list(kinds.values())
    assert spans.one_to_many > 3  # numbers
    assert (spans.student_gaps, spans.teacher_gaps) == (0, 0)


def test_tokens_in_no_span_are_counted_as_gaps() -> None:
    starts = np.array([0, 2]), np.array([1, 4]), np.array([1, 2]), np.array([2, 3])
    statistics = SpanStatistics.from_spans(Spans(*starts), num_student_tokens=6, num_teacher_tokens=3)
    assert (statistics.one_to_one, statistics.many_to_one, statistics.num_spans) == (1, 1, 2)
    assert (statistics.student_gaps, statistics.teacher_gaps) == (3, 1)


@pytest.mark.parametrize("rule", get_args(AutoLoss))
def test_a_rule_recommends_one_of_its_choices(rule: AutoLoss) -> None:
    student = fake(b"a", b"12", fingerprint="s")
    teachers = (
        fake(b"a", b"12", fingerprint="t"),
        fake(b"a", b"1", fingerprint="t"),
        fake(b"b", fingerprint="t"),
        student,
    )
    for teacher in teachers:
        assert recommend_loss(student, teacher, rule=rule).loss in CHOICES[rule]
    assert recommend_loss(student, student, rule=rule).loss == "TokenKL"


def test_the_table_names_the_papers_choice_where_it_differs(audits: dict[str, CoverageAudit]) -> None:
    audit = audits["o200k"]
    alike = replace(audit, recommendation=audit.paper_recommendation)
    assert "recommended: HybridKL, because all" in table(alike)
    assert "auto_paper" not in table(alike)
    shown = table(replace(audit, recommendation=Recommendation("BytePrefixKL", "a test says so")))
    assert "recommended: BytePrefixKL, because a test says so" in shown
    assert "recommended by the paper (loss: auto_paper): HybridKL, because all" in shown


def test_same_tokens_recommend_token_kl_whatever_the_name(llama3: PreTrainedTokenizerFast) -> None:
    student = CanonicalVocabulary.from_tokenizer(llama3)
    copy = PreTrainedTokenizerFast(
        tokenizer_object=llama3.backend_tokenizer, bos_token=llama3.bos_token, eos_token=llama3.eos_token
    )
    copy.name_or_path = "somewhere/else"
    recommendation = recommend_loss(student, CanonicalVocabulary.from_tokenizer(copy))
    assert recommendation.loss == "TokenKL"
    assert student.vocabulary_fingerprint in recommendation.reason


def fake(*tokens: bytes, fingerprint: str) -> Any:
    return FakeVocabulary(tokens, fingerprint=fingerprint)


@pytest.mark.parametrize(
    ("critical", "loss", "reason"),
    [
        (("numerals_2", "numerals_3"), "ProjectionKL", "1 of 2 numerals_2, 0 of 0 numerals_3"),
        (("letters",), "HybridKL", "1 of 1 letters"),
        (("letters", "punctuation"), "ProjectionKL", "1 of 1 letters, 0 of 1 punctuation"),
        ((), "HybridKL", "none were named"),
    ],
)
def test_critical_categories_decide(critical: tuple[Category, ...], loss: str, reason: str) -> None:
    student = fake(b"a", b"12", b"34", b"?!", fingerprint="s")
    teacher = fake(b"12", b"a", b"3", b"4", fingerprint="t")
    recommendation = recommend_loss(student, teacher, rule="auto_paper", critical=critical)
    assert recommendation.loss == loss
    assert reason in recommendation.reason


def test_nothing_in_common_recommends_projection_kl() -> None:
    recommendation = recommend_loss(fake(b"a", fingerprint="s"), fake(b"b", fingerprint="t"), rule="auto_paper")
    assert (recommendation.loss, recommendation.reason) == (
        "ProjectionKL",
        "the vocabularies have no common token to build a partition from",
    )


def test_a_student_that_splits_digits_has_nothing_critical_to_lose(
    smollm2: PreTrainedTokenizerFast, llama3: PreTrainedTokenizerFast
) -> None:
    student = CanonicalVocabulary.from_tokenizer(smollm2)
    recommendation = recommend_loss(student, CanonicalVocabulary.from_tokenizer(llama3), rule="auto_paper")
    assert recommendation.loss == "HybridKL"
    assert "0 of 0 numerals_2" in recommendation.reason


def test_picture_has_the_shares_of_every_category(audits: dict[str, CoverageAudit]) -> None:
    """The bars of a category (equal text, added by W, only under W, unmapped) add up to 1."""
    audit = audits["o200k"]
    (axes,) = figure_of(audit).axes
    rows = [row for row in audit.categories.values() if row.count]
    drawn = [[bar.get_width() for bar in container] for container in axes.containers]
    assert len(drawn) == 4
    for index, row in enumerate(rows):
        steps = [row.strict, row.enlarged - row.strict, row.covered - row.enlarged, row.unmapped]
        assert [part[index] for part in drawn] == pytest.approx([step / row.count for step in steps])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[1] == "numerals, 2 digits (100)"
    assert sum(part[3] for part in drawn) == pytest.approx(1)
    assert drawn[1][-2] > 0


def test_byte_pieces_are_not_numerals(llama2_style: PreTrainedTokenizerFast, smollm2: PreTrainedTokenizerFast) -> None:
    student, teacher = (CanonicalVocabulary.from_tokenizer(each) for each in (llama2_style, smollm2))
    audit = CoverageAudit.from_vocabularies(student, teacher, critical=["numerals_1"])
    assert (audit.categories["numerals_1"].count, audit.categories["byte_pieces"].count) == (10, 256)
    assert audit.paper_recommendation.loss == "HybridKL"


def test_unknown_critical_category_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"critical categories must be among numerals_1, .*, got 'digits'"):
        recommend_loss(fake(b"a", fingerprint="s"), fake(b"a", fingerprint="t"), critical=cast(Any, ["digits"]))


def test_projection_of_other_tokenizers_is_refused(
    smollm2: PreTrainedTokenizerFast, llama2_style: PreTrainedTokenizerFast
) -> None:
    student, teacher = (CanonicalVocabulary.from_tokenizer(each) for each in (smollm2, llama2_style))
    with pytest.raises(ValueError, match="must belong to the tokenizers"):
        CoverageAudit.from_vocabularies(student, teacher, build_projection(llama2_style, smollm2))


def test_partition_sizes_are_shown() -> None:
    empty = torch.zeros(0, dtype=torch.long)
    partition = VocabularyPartition(torch.arange(3), torch.arange(3), empty, torch.arange(1500))
    assert str(partition) == "|C| = 3, |U_S| = 0, |U_T| = 1,500"
