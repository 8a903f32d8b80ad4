"""The rollouts of an on-policy step."""

from __future__ import annotations

from dataclasses import dataclass

from xtoken_pl.batch.prompts import Prompt
from xtoken_pl.data.cutting import Window
from xtoken_pl.rollouts.rollout import Rollout


@dataclass(frozen=True)
class WrittenStep:
    """The rollouts of an on-policy step, of all its batches on this process.

    Attributes:
        step: Number of the optimizer step.
        prompts: The prompts, each once for every rollout of it.
        rollouts: The rollout behind each prompt.
        windows: The window of each rollout, as all sides read it.
        seconds: Time that it took to write, in seconds.
    """

    step: int
    prompts: list[Prompt]
    rollouts: list[Rollout]
    windows: list[Window]
    seconds: float
