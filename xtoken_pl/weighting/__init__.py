"""Weights of the teachers, and of their spans, in the distillation loss."""

from xtoken_pl.weighting.base import TeacherScores, Weighting, span_alphas, teacher_scores
from xtoken_pl.weighting.confidence import ConfidenceWeighting, MostConfidentTeacher
from xtoken_pl.weighting.span_kinds import kind_weights, span_weights
from xtoken_pl.weighting.static import StaticWeighting

__all__ = [
    "ConfidenceWeighting",
    "MostConfidentTeacher",
    "StaticWeighting",
    "TeacherScores",
    "Weighting",
    "kind_weights",
    "span_alphas",
    "span_weights",
    "teacher_scores",
]
