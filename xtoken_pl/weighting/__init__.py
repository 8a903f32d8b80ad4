"""Weights of the teachers in the distillation loss."""

from xtoken_pl.weighting.base import TeacherScores, Weighting, span_alphas, teacher_scores
from xtoken_pl.weighting.confidence import ConfidenceWeighting, MostConfidentTeacher
from xtoken_pl.weighting.static import StaticWeighting

__all__ = [
    "ConfidenceWeighting",
    "MostConfidentTeacher",
    "StaticWeighting",
    "TeacherScores",
    "Weighting",
    "span_alphas",
    "teacher_scores",
]
