"""The interface between the teachers' scores and their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from xtoken_pl.losses import SpanScores


@dataclass(frozen=True)
class TeacherScores:
    """What a weighting sees of a teacher: its static alpha and its scores of the batch's spans."""

    alpha: float
    spans: SpanScores


class Weighting(nn.Module, ABC):
    r"""Gives every teacher its weight :math:`\alpha_m` in :math:`L_{KD} = \sum_m \alpha_m L_m`."""

    def check(self, alphas: Mapping[str, float]) -> None:
        """Refuses static weights that this weighting cannot work with. Called once, before training."""

    @abstractmethod
    def forward(self, scores: Mapping[str, TeacherScores]) -> dict[str, Tensor]:
        """One scalar weight for each teacher, detached."""
