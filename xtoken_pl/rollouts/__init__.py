"""On-policy training: the student writes, and its teachers judge what it wrote."""

from xtoken_pl.rollouts.engine import Request, RolloutEngine, Sampling
from xtoken_pl.rollouts.rollout import Ending, Rollout
from xtoken_pl.rollouts.settings import Rollouts

__all__ = ["Ending", "Request", "Rollout", "RolloutEngine", "Rollouts", "Sampling"]
