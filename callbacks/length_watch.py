"""Notices when the texts that a student writes no longer end, or become short or empty."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from xtoken_pl.rollouts.statistics import RolloutCounts

#: Number of rollouts that a mean looks back on; nothing is said before so many are known.
MEMORY = 256
#: Largest weight of the newest values in a mean, so that no single log decides.
LARGEST_WEIGHT = 0.5
#: Most rollouts end if at least this share does, and hardly any if less than this share does.
MOST_END, HARDLY_ANY_END = 0.5, 0.1
#: Rollouts have become short if their typical length is below this share of the highest one so far.
SHORT = 0.1
#: Empty rollouts dominate above this share.
MOSTLY_EMPTY = 0.5


@dataclass
class RecentMean:
    """Exponential mean over about the last :data:`MEMORY` rollouts; the plain mean of fewer.

    Attributes:
        value: The mean.
        num_seen: Number of rollouts so far.
        highest: Highest mean so far, once enough rollouts are known.
    """

    value: float = 0.0
    num_seen: float = 0.0
    highest: float = -math.inf

    def add(self, total: float, count: float) -> None:
        """Adds values, given by their sum and number."""
        if not count:
            return
        self.num_seen += count
        is_first = self.num_seen == count
        weight = 1.0 if is_first else min(LARGEST_WEIGHT, count / min(self.num_seen, MEMORY))
        self.value += weight * (total / count - self.value)
        if self.is_known:
            self.highest = max(self.highest, self.value)

    @property
    def is_known(self) -> bool:
        """Whether enough rollouts were seen."""
        return self.num_seen >= MEMORY


@dataclass
class LengthWatch:
    """Warns once when rollouts no longer end although most did, and once when they become short or empty.

    The typical length is the geometric mean over the rollouts that ended, which a few long texts hardly change. A
    student that never ended its texts is reported once, as information.

    Attributes:
        ended: Share of rollouts that end with a stop token.
        empty: Share of rollouts without text.
        log_length: Logarithm of the typical length.
        said: Messages given so far.
    """

    ended: RecentMean = field(default_factory=RecentMean)
    empty: RecentMean = field(default_factory=RecentMean)
    log_length: RecentMean = field(default_factory=RecentMean)
    said: list[str] = field(default_factory=list)

    def add(self, counts: RolloutCounts, max_new_tokens: int) -> None:
        """Adds rollouts of all processes, and says what is noticed.

        Args:
            counts: Counts over the rollouts since the last call.
            max_new_tokens: Largest number of tokens of a rollout.
        """
        self.ended.add(counts.num_ended, counts.num_rollouts)
        self.empty.add(counts.num_empty, counts.num_rollouts)
        self.log_length.add(counts.log_lengths, counts.num_ended)
        if self.ended.is_known and self.ended.value < HARDLY_ANY_END:
            if self.ended.highest >= MOST_END:
                self._say("exploded", max_new_tokens)
            else:
                self._say("never ended", max_new_tokens)
        if self.empty.is_known and self.empty.value > MOSTLY_EMPTY:
            self._say("empty", max_new_tokens)
        elif self.log_length.is_known and self.log_length.value < self.log_length.highest + math.log(SHORT):
            self._say("short", max_new_tokens)

    def _say(self, what: str, max_new_tokens: int) -> None:
        kind = "collapsed" if what in ("empty", "short") else what
        if kind in self.said:
            return
        self.said.append(kind)
        share, most = f"{self.ended.value:.0%}", f"{max(self.ended.highest, 0):.0%}"
        if what == "never ended":
            rank_zero_info(
                f"{share} of the student's rollouts end with a stop token; the others stop at max_new_tokens "
                f"({max_new_tokens}). A base model may not know the stop token of its chat template: train on "
                "conversations with learn_turn_end: true first (model.rollouts.warm_up_steps, or a run of its own), "
                "or in the same run with a lower model.rollouts.share"
            )
        elif what == "exploded":
            rank_zero_warn(
                f"the lengths of rollouts explode: {share} of them end with a stop token, after {most} before; the "
                f"others stop at max_new_tokens ({max_new_tokens}). rollouts/samples shows whether they repeat "
                "themselves, and whether the stop token lies in a span, since only there it is learned. Lower the "
                "learning rate or the temperature, mix in more of the data (a lower model.rollouts.share, with "
                "learn_turn_end: true in conversations), or raise max_new_tokens if the texts are sensible"
            )
        else:
            before, now = (math.exp(value) for value in (self.log_length.highest, self.log_length.value))
            lengths = f"their typical length is {now:.0f} tokens, after {before:.0f} before"
            found = f"{self.empty.value:.0%} of them have no text" if what == "empty" else lengths
            rank_zero_warn(
                f"the lengths of rollouts collapse: {found}. Ignore this if short answers are right; otherwise lower "
                "the learning rate, mix in more of the data (a lower model.rollouts.share), use a forward divergence "
                "in place of a reverse one, or sample at temperature 1 with top_p 1"
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns the means and what was said, for checkpoints."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> LengthWatch:
        """Restores what :meth:`state_dict` returned."""
        means = {name: RecentMean(**state[name]) for name in ("ended", "empty", "log_length")}
        return cls(**means, said=list(state["said"]))
