"""Fixed weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from xtoken_pl.weighting.base import TeacherScores, Weighting


class StaticWeighting(Weighting):
    """Every teacher keeps the alpha of its specification."""

    def check(self, alphas: Mapping[str, float]) -> None:
        """Refuses weights that are all zero.

        Raises:
            ValueError: If no teacher has a positive alpha.
        """
        if alphas and not any(alphas.values()):
            raise ValueError(
                f"at least one teacher's alpha must be > 0, got {dict(alphas)}; "
                "raise one, or train on cross-entropy alone with kd_weight=0"
            )

    def forward(self, scores: Mapping[str, TeacherScores]) -> dict[str, Tensor]:
        return {name: score.spans.loss.new_tensor(score.alpha) for name, score in scores.items()}
