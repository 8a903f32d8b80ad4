"""Static weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from xtoken_pl.weighting.base import SumOverProcesses, TeacherScores, Weighting, check_any_alpha


class StaticWeighting(Weighting):
    """Static weights: the alpha of each teacher's specification, or that of the source that a window is from."""

    def check(self, alphas: Mapping[str, float]) -> None:
        check_any_alpha(alphas)

    def forward(self, teachers: Mapping[str, TeacherScores], sum_over_processes: SumOverProcesses) -> dict[str, Tensor]:
        return {name: teacher.alpha for name, teacher in teachers.items()}
