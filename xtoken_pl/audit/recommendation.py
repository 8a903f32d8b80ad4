"""Recommends a loss for a pair of tokenizers, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from xtoken_pl.audit.categories import CATEGORIES, Category, categorize
from xtoken_pl.projection import VocabularyPartition
from xtoken_pl.specs import AutoLoss
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.checks import check_choice
from xtoken_pl.utilities.errors import UserError

LossName = Literal["TokenKL", "ProjectionKL", "HybridKL", "BytePrefixKL"]

#: Losses that each rule chooses from.
CHOICES: dict[AutoLoss, tuple[LossName, ...]] = {
    "auto": ("TokenKL", "BytePrefixKL"),
    "auto_paper": ("TokenKL", "ProjectionKL", "HybridKL"),
}

#: Numerals that a student packs and a teacher may split: GOLD and H-KL lower their probability if they are not common.
CRITICAL: tuple[Category, ...] = ("numerals_2", "numerals_3")


@dataclass(frozen=True)
class Recommendation:
    """A recommended loss and the reason for it."""

    loss: LossName
    reason: str


def recommend_loss(
    student: CanonicalVocabulary,
    teacher: CanonicalVocabulary,
    *,
    rule: AutoLoss = "auto",
    critical: Sequence[Category] = CRITICAL,
    strict: VocabularyPartition | None = None,
) -> Recommendation:
    """Recommends a loss for a pair of vocabularies.

    Both rules choose ``TokenKL`` if both sides share their token ids (by fingerprint, not by name). If they do not,
    ``auto`` chooses ``BytePrefixKL``, which compares every token at every position, and ``auto_paper`` by the paper's
    coverage audit:

    - ``ProjectionKL`` if a critical token of the student is outside the strict common set C: losses on a partition
      would lower its probability (Proposition 1);
    - ``HybridKL`` if all critical tokens are in C.

    Args:
        student: The student's vocabulary.
        teacher: The teacher's vocabulary.
        rule: Rule that chooses, as in a teacher's ``loss``.
        critical: Categories of the student's tokens that must not be lost, for ``auto_paper``.
        strict: Strict partition, computed if None.

    Raises:
        UserError: If the rule or a critical category is unknown.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, coverage audit.
    """
    check_choice("rule", rule, AutoLoss)
    critical = list(dict.fromkeys(critical))
    for category in critical:
        if category not in CATEGORIES:
            raise UserError(f"critical categories must be among {', '.join(CATEGORIES)}, got {category!r}")
    if student.vocabulary_fingerprint == teacher.vocabulary_fingerprint:
        return Recommendation(
            "TokenKL", f"both sides share their tokens (fingerprint {student.vocabulary_fingerprint})"
        )
    return _RULES[rule](student, teacher, critical, strict)


def _by_default(
    student: CanonicalVocabulary,
    teacher: CanonicalVocabulary,
    _critical: Sequence[Category],
    strict: VocabularyPartition | None,
) -> Recommendation:
    """``auto`` of two vocabularies that differ."""
    if strict is None:
        strict = VocabularyPartition.strict(student, teacher)
    shared = f"{len(strict):,} of the student's {len(student):,} tokens are tokens of the teacher"
    return Recommendation("BytePrefixKL", f"the tokenizers differ, and it compares all tokens ({shared})")


def _by_paper(
    student: CanonicalVocabulary,
    teacher: CanonicalVocabulary,
    critical: Sequence[Category],
    strict: VocabularyPartition | None,
) -> Recommendation:
    """``auto_paper`` of two vocabularies that differ."""
    if strict is None:
        strict = VocabularyPartition.strict(student, teacher)
    kinds = categorize(student)
    common = kinds[strict.student_common.numpy()]
    totals = {category: int(np.sum(kinds == CATEGORIES.index(category))) for category in critical}
    inside = {category: int(np.sum(common == CATEGORIES.index(category))) for category in critical}
    counted = ", ".join(f"{inside[category]:,} of {totals[category]:,} {category}" for category in critical)
    if sum(inside.values()) < sum(totals.values()):
        return Recommendation("ProjectionKL", f"critical tokens of the student lie outside C ({counted} are in it)")
    if len(strict) == 0:
        return Recommendation("ProjectionKL", "the vocabularies have no common token to build a partition from")
    return Recommendation("HybridKL", f"all critical tokens of the student are in C ({counted or 'none were named'})")


_RULES = {"auto": _by_default, "auto_paper": _by_paper}
