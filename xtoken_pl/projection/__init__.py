"""The projection matrix W [V_s, V_t] from the student's vocabulary to a teacher's."""

from xtoken_pl.projection.build import ProjectionParameters, build_projection
from xtoken_pl.projection.learned import LearnedProjection
from xtoken_pl.projection.partition import VocabularyPartition
from xtoken_pl.projection.projection import Projection

__all__ = [
    "LearnedProjection",
    "Projection",
    "ProjectionParameters",
    "VocabularyPartition",
    "build_projection",
]
