"""The settings of on-policy training."""

from __future__ import annotations

import math
import os

from xtoken_pl.rollouts.engine import RolloutEngine, Sampling
from xtoken_pl.specs import PromptSettings
from xtoken_pl.utilities.checks import check_at_least_one, check_not_negative
from xtoken_pl.utilities.errors import UserError

# Multiples of it, modulo 1, are spread evenly over [0, 1), with no period that a log interval could share.
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class Rollouts:
    """On-policy training: in a share of the optimizer steps the student writes the text that it learns from.

    Args:
        share: Share of the optimizer steps that are on-policy, in [0, 1] (GKD's lambda); the others learn from the
            data as ever. At 1 the data are read for their prompts alone.
        max_new_tokens: Largest number of tokens of a rollout.
        temperature: Temperature of sampling; 0 takes the most probable token.
        top_p: Only the most probable tokens that together have this probability are drawn.
        top_k: Only so many most probable tokens are drawn; None for all.
        num_samples: Rollouts of each prompt; a step then learns from so many times ``data.batch_size`` texts.
        prompt_bytes: Length of a prompt at the beginning of a window of a text, in bytes.
        prompt_end: Text behind whose first occurrence the prompt of a window of a text ends, in place of
            ``prompt_bytes``. Prompts of conversations end where the assistant is to answer.
        seed: Seed of all draws; None for that of ``seed_everything``.
        engine: Engine that writes; None for the ``generate`` of transformers.

    Raises:
        UserError: If a value is out of range.

    References:
        [0] Agarwal et al., On-Policy Distillation of Language Models (GKD), 2023, https://arxiv.org/abs/2306.13649
    """

    def __init__(
        self,
        *,
        share: float = 1.0,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        num_samples: int = 1,
        prompt_bytes: int = 256,
        prompt_end: str | None = None,
        seed: int | None = None,
        engine: RolloutEngine | None = None,
    ) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"share must be in [0, 1], got {share}; 1 lets the student write every step")
        if not 0 < top_p <= 1:
            raise UserError(f"top_p must be in (0, 1], got {top_p}; 1 draws from all tokens")
        sizes = {"max_new_tokens": max_new_tokens, "top_k": top_k, "num_samples": num_samples}
        for name, size in {**sizes, "prompt_bytes": prompt_bytes}.items():
            check_at_least_one(name, size)
        if prompt_end == "":
            raise UserError("prompt_end must be a text, got ''; leave it out for prompts of prompt_bytes")
        check_not_negative("seed", 0 if seed is None else seed, "leave it out for that of seed_everything")
        self.share = share
        self.sampling = Sampling(
            max_new_tokens,
            check_not_negative("temperature", temperature, "0 takes the most probable token"),
            top_p,
            top_k,
        )
        self.num_samples = num_samples
        self.seed = seed
        self.engine = engine
        self.prompts = PromptSettings(max_new_tokens, prompt_bytes, prompt_end, only=share == 1)

    @property
    def draw_seed(self) -> int:
        """Seed of all draws."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def is_on_policy(self, step: int) -> bool:
        """Whether the student writes the text of an optimizer step, a function of the step and the seed alone.

        Every stretch of n steps has ``share * n`` of them, to within a few.
        """
        return (self.draw_seed + step + 1) * _GOLDEN_RATIO % 1 < self.share
