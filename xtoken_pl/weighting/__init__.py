"""Weights between teachers."""

from xtoken_pl.weighting.base import TeacherScores, Weighting
from xtoken_pl.weighting.static import StaticWeighting

__all__ = ["StaticWeighting", "TeacherScores", "Weighting"]
