"""What a process wrote in an on-policy step, for callbacks."""

from __future__ import annotations

from dataclasses import dataclass

from xtoken_pl.batch import Prompt
from xtoken_pl.data.cutting import Window
from xtoken_pl.rollouts.rollout import Rollout


@dataclass(frozen=True)
class WrittenStep:
    """All texts that this process wrote in an optimizer step, in the order of the step's batches.

    Attributes:
        step: Number of the optimizer step.
        prompts: Prompt of each text; one that is sampled several times is repeated.
        rollouts: The texts.
        windows: Windows that are made of them, as every side reads them.
        seconds: Duration of writing.
    """

    step: int
    prompts: list[Prompt]
    rollouts: list[Rollout]
    windows: list[Window]
    seconds: float
