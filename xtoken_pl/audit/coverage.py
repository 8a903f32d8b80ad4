"""The coverage audit: how much of the student's vocabulary a teacher can teach, category by category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from xtoken_pl.alignment import SpanAligner, SpanStatistics
from xtoken_pl.audit.categories import CATEGORIES, Category, categorize
from xtoken_pl.audit.positions import PositionStatistics
from xtoken_pl.audit.recommendation import CRITICAL, Recommendation, recommend_loss
from xtoken_pl.prefix_map import build_prefix_map
from xtoken_pl.projection import Projection, VocabularyPartition, build_projection
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError


@dataclass(frozen=True)
class CategoryCoverage:
    """Counts of the student's tokens of one category.

    Attributes:
        count: All of them.
        strict: Those in the strict common set C (equal text).
        enlarged: Those in C enlarged by W (H-KL's).
        covered: Those that W maps to any teacher token (P-KL's).
    """

    count: int
    strict: int
    enlarged: int
    covered: int

    @property
    def unmapped(self) -> int:
        """Those whose row of W is zero."""
        return self.count - self.covered


@dataclass(frozen=True)
class CoverageAudit:
    """What a student can learn from a teacher of another tokenizer, and by which loss.

    Attributes:
        student, teacher: Names of the tokenizers.
        num_student, num_teacher: Tokens that exist on each side.
        strict, enlarged: The partitions of GOLD and of H-KL.
        categories: By category of the student's tokens.
        recommendation: The loss and the reason.
        spans: Of a text, where one was given.
        positions: Of the same text, what the byte-prefix KL knows of it.

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
        """Audits a pair.

        Args:
            projection: W, where the caller has it already.
            critical: Categories of the student's tokens that must not be lost; see :func:`recommend_loss`.
            text: For the statistics of spans and positions.

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

        def counts(ids: Tensor) -> list[int]:
            found = kinds[ids.numpy()]
            return np.bincount(found[found >= 0], minlength=len(CATEGORIES)).tolist()

        columns = (
            np.bincount(kinds[kinds >= 0], minlength=len(CATEGORIES)).tolist(),
            counts(strict.student_common),
            counts(enlarged.student_common),
            counts(projection.weights.sum(dim=1).nonzero().squeeze(1)),
        )
        return cls(
            student=student.name,
            teacher=teacher.name,
            num_student=int(student.exists.sum()),
            num_teacher=int(teacher.exists.sum()),
            strict=strict,
            enlarged=enlarged,
            categories={
                c: CategoryCoverage(*row) for c, row in zip(CATEGORIES, zip(*columns, strict=True), strict=True)
            },
            recommendation=recommend_loss(student, teacher, critical=critical, strict=strict),
            spans=None if text is None else _span_statistics(student, teacher, text),
            positions=None if text is None else _position_statistics(student, teacher, text),
        )

    @property
    def total(self) -> CategoryCoverage:
        """Of all categories together."""
        rows = self.categories.values()
        return CategoryCoverage(
            count=sum(row.count for row in rows),
            strict=sum(row.strict for row in rows),
            enlarged=sum(row.enlarged for row in rows),
            covered=sum(row.covered for row in rows),
        )

    def to_dict(self) -> dict[str, Any]:
        """Numbers and names alone, for JSON."""

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
            "spans": None if self.spans is None else asdict(self.spans),
            "positions": None if self.positions is None else asdict(self.positions),
        }


def _span_statistics(student: CanonicalVocabulary, teacher: CanonicalVocabulary, text: str) -> SpanStatistics:
    (student_ids,), (teacher_ids,) = student.encode([text]), teacher.encode([text])
    if not student_ids:
        raise UserError("the text for the statistics of spans must not be empty; give another, or none")
    spans = SpanAligner(student.tokenizer, teacher.tokenizer).align(student_ids, teacher_ids)
    return SpanStatistics.from_spans(spans, len(student_ids), len(teacher_ids))


def _position_statistics(student: CanonicalVocabulary, teacher: CanonicalVocabulary, text: str) -> PositionStatistics:
    prefix_map = build_prefix_map(student.tokenizer, teacher.tokenizer)
    return PositionStatistics.from_text(prefix_map, student, teacher, text)
