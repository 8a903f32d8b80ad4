"""The coverage audit: how much of the student's vocabulary a teacher can teach, category by category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xtoken_pl.alignment import SpanAligner, SpanStatistics
from xtoken_pl.audit.categories import CATEGORIES, Category, categorize
from xtoken_pl.audit.positions import PositionStatistics
from xtoken_pl.audit.recommendation import CRITICAL, Recommendation, recommend_loss
from xtoken_pl.projection import Projection, VocabularyPartition, build_projection
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError


@dataclass(frozen=True)
class CategoryCoverage:
    """Counts of the student's tokens of one category.

    Attributes:
        count: All tokens of the category.
        strict: Tokens in the strict common set C (equal text).
        enlarged: Tokens in C as enlarged by W (for H-KL).
        covered: Tokens that W maps to any teacher token (for P-KL).
    """

    count: int
    strict: int
    enlarged: int
    covered: int

    @property
    def unmapped(self) -> int:
        """Tokens whose row of W is zero."""
        return self.count - self.covered


@dataclass(frozen=True)
class CoverageAudit:
    """How much a student can learn from a teacher with another tokenizer, and with which loss.

    Attributes:
        student, teacher: Names of the tokenizers.
        num_student, num_teacher: Number of tokens that exist on each side.
        strict, enlarged: Partitions of GOLD and of H-KL.
        categories: Coverage of the student's tokens by category.
        recommendation: Loss that ``auto`` chooses and the reason.
        paper_recommendation: Loss that ``auto_paper`` chooses and the reason.
        spans: Statistics of spans of a text; None without a text.
        positions: Statistics of positions of the same text under the byte-prefix KL.

    References:
        [0] X-Token, 2026, https://arxiv.org/abs/2605.21699, coverage audit.
    """

    student: str
    teacher: str
    num_student: int
    num_teacher: int
    strict: VocabularyPartition
    enlarged: VocabularyPartition
    categories: dict[Category, CategoryCoverage]
    recommendation: Recommendation
    paper_recommendation: Recommendation
    spans: SpanStatistics | None
    positions: PositionStatistics | None

    @classmethod
    def from_vocabularies(
        cls,
        student: CanonicalVocabulary,
        teacher: CanonicalVocabulary,
        projection: Projection | None = None,
        *,
        critical: Sequence[Category] = CRITICAL,
        text: str | None = None,
    ) -> CoverageAudit:
        """Audits a pair of vocabularies.

        Args:
            student: The student's vocabulary.
            teacher: The teacher's vocabulary.
            projection: W, built if None.
            critical: Categories of the student's tokens that must not be lost; see :func:`recommend_loss`.
            text: Text for the statistics of spans and positions.

        Raises:
            UserError: If a critical category is unknown, W belongs to other tokenizers, or the text is empty.
        """
        if projection is None:
            projection = build_projection(student.tokenizer, teacher.tokenizer)
        else:
            projection.check_belongs_to(student, teacher)
        strict = VocabularyPartition.strict(student, teacher)
        enlarged = VocabularyPartition.enlarged(student, teacher, projection)
        kinds = categorize(student)
        # Categories of all tokens, of those in C (strict, enlarged), and of those that W maps.
        covered = projection.weights.sum(dim=1).nonzero().squeeze(1)
        sets = (kinds, *(kinds[ids.numpy()] for ids in (strict.student_common, enlarged.student_common, covered)))
        return cls(
            student=student.name,
            teacher=teacher.name,
            num_student=int(student.exists.sum()),
            num_teacher=int(teacher.exists.sum()),
            strict=strict,
            enlarged=enlarged,
            categories={
                category: CategoryCoverage(*(int(np.sum(found == index)) for found in sets))
                for index, category in enumerate(CATEGORIES)
            },
            recommendation=recommend_loss(student, teacher, critical=critical, strict=strict),
            paper_recommendation=recommend_loss(student, teacher, rule="auto_paper", critical=critical, strict=strict),
            spans=None if text is None else _span_statistics(student, teacher, text),
            positions=None if text is None else PositionStatistics.from_text(student, teacher, text),
        )

    @property
    def total(self) -> CategoryCoverage:
        """Coverage of all categories together."""
        rows = ((row.count, row.strict, row.enlarged, row.covered) for row in self.categories.values())
        return CategoryCoverage(*map(sum, zip(*rows, strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """Converts the audit to plain numbers and names, for JSON."""

        def sizes(partition: VocabularyPartition) -> dict[str, int]:
            rest = {"student_rest": len(partition.student_rest), "teacher_rest": len(partition.teacher_rest)}
            return {"common": len(partition), **rest}

        return {
            "student": self.student,
            "teacher": self.teacher,
            "num_student": self.num_student,
            "num_teacher": self.num_teacher,
            "partition": {"strict": sizes(self.strict), "enlarged": sizes(self.enlarged)},
            "categories": {
                category: {**asdict(row), "unmapped": row.unmapped} for category, row in self.categories.items()
            },
            "recommendation": asdict(self.recommendation),
            "paper_recommendation": asdict(self.paper_recommendation),
            "spans": None if self.spans is None else asdict(self.spans),
            "positions": None if self.positions is None else asdict(self.positions),
        }


def _span_statistics(student: CanonicalVocabulary, teacher: CanonicalVocabulary, text: str) -> SpanStatistics:
    (student_ids,), (teacher_ids,) = student.encode([text]), teacher.encode([text])
    if not student_ids:
        raise UserError("the text to audit must not be empty, got none; give another, or leave text out")
    spans = SpanAligner(student.tokenizer, teacher.tokenizer).align(student_ids, teacher_ids)
    return SpanStatistics.from_spans(spans, len(student_ids), len(teacher_ids))
