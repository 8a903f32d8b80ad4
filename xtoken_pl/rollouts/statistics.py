"""Counts over rollouts: their lengths, why they ended, and how much of them repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from xtoken_pl.batch import Prompt
from xtoken_pl.rollouts.rollout import Rollout

#: Number of tokens in a row that count as a repetition when they occur again.
GRAM_SIZE = 4


def count_repeated(ids: Sequence[int], size: int = GRAM_SIZE) -> tuple[int, int]:
    """Returns how many n-grams of a text occurred before in the same text, and the number of its n-grams.

    >>> count_repeated([1, 2, 1, 2, 1, 2], size=2)  # 12, 21, and again 12, 21, 12
    (3, 5)
    """
    grams = list(zip(*(ids[start:] for start in range(size)), strict=False))
    return len(grams) - len(set(grams)), len(grams)


@dataclass(frozen=True)
class RolloutCounts:
    """Sums over rollouts; those of several steps or processes add up.

    Attributes:
        num_rollouts: Number of rollouts.
        num_tokens: Number of tokens written, with stop tokens.
        num_ended: Number of rollouts that ended with a stop token.
        log_lengths: Sum of the logarithms of the numbers of tokens of these.
        num_empty: Number of rollouts without text.
        num_repeated: Number of n-grams (:data:`GRAM_SIZE`) that occurred before in the same text.
        num_grams: Number of n-grams.
        num_cut: Number of rollouts behind a prompt whose beginning is left out.
    """

    num_rollouts: float = 0
    num_tokens: float = 0
    num_ended: float = 0
    log_lengths: float = 0
    num_empty: float = 0
    num_repeated: float = 0
    num_grams: float = 0
    num_cut: float = 0

    @classmethod
    def from_rollouts(cls, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> RolloutCounts:
        """Counts rollouts and the prompts that they were written behind, in the same order."""
        ended = [rollout for rollout in rollouts if rollout.ended == "stop"]
        repeated = [count_repeated(_text_ids(rollout)) for rollout in rollouts]
        return cls(
            num_rollouts=len(rollouts),
            num_tokens=sum(len(rollout.ids) for rollout in rollouts),
            num_ended=len(ended),
            log_lengths=sum(math.log(len(rollout.ids)) for rollout in ended),
            num_empty=sum(not rollout.text for rollout in rollouts),
            num_repeated=sum(again for again, _ in repeated),
            num_grams=sum(total for _, total in repeated),
            num_cut=sum(prompt.is_cut for prompt in prompts),
        )

    def __add__(self, other: RolloutCounts) -> RolloutCounts:
        return RolloutCounts(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    @property
    def means(self) -> dict[str, float]:
        """Mean length in tokens, and the shares that ended, that repeat and whose prompt is cut; NaN without any."""
        return {
            "length": _ratio(self.num_tokens, self.num_rollouts),
            "ended": _ratio(self.num_ended, self.num_rollouts),
            "repeated": _ratio(self.num_repeated, self.num_grams),
            "cut": _ratio(self.num_cut, self.num_rollouts),
        }


def _text_ids(rollout: Rollout) -> Sequence[int]:
    """Ids without the stop token."""
    return rollout.ids[:-1] if rollout.ended == "stop" else rollout.ids


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
