"""From a teacher's specification to a loss that is bound to its pair of vocabularies."""

from __future__ import annotations

import copy

from lightning.pytorch.utilities import rank_zero_info

from xtoken_pl.audit import LossName, recommend_loss
from xtoken_pl.losses import HybridKL, ProjectionKL, SpanLoss, TokenKL
from xtoken_pl.projection import Projection, build_projection
from xtoken_pl.teacher import Teacher
from xtoken_pl.tokenization import CanonicalVocabulary

_RECOMMENDED: dict[LossName, type[SpanLoss]] = {
    "TokenKL": TokenKL,
    "ProjectionKL": ProjectionKL,
    "HybridKL": HybridKL,
}


def bind_loss(
    name: str, teacher: Teacher, student_vocabulary: CanonicalVocabulary, teacher_vocabulary: CanonicalVocabulary
) -> SpanLoss:
    """A copy of the teacher's loss, bound; ``auto`` is resolved, and W built or loaded where it is needed.

    What was chosen and built is logged.

    Args:
        name: The teacher's, for the log.

    Raises:
        ValueError: If the loss does not fit the vocabularies, W belongs to others, or an option has no use.
    """
    if isinstance(teacher.loss, SpanLoss):
        loss = copy.deepcopy(teacher.loss)  # the specification stays as it was given
    else:
        chosen = recommend_loss(student_vocabulary, teacher_vocabulary)
        rank_zero_info(f"teacher {name!r}: loss auto -> {chosen.loss}, because {chosen.reason}")
        loss = _RECOMMENDED[chosen.loss]()
        teacher.check_loss(loss)
    projection = _projection(teacher, student_vocabulary, teacher_vocabulary) if loss.needs_projection else None
    loss.bind(student_vocabulary, teacher_vocabulary, projection)
    if teacher.learn_projection:
        loss.learn_projection()
    rank_zero_info(f"teacher {name!r}: {type(loss).__name__}({loss.extra_repr()})")
    return loss


def _projection(teacher: Teacher, student: CanonicalVocabulary, other: CanonicalVocabulary) -> Projection:
    if teacher.projection is None:
        return build_projection(student.tokenizer, other.tokenizer)
    projection = Projection.load(teacher.projection)
    projection.check_belongs_to(student, other)
    return projection
