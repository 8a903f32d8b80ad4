"""The settings of on-policy training."""

from __future__ import annotations

import re

from xtoken_pl.rollouts.engine import RolloutEngine, Sampling
from xtoken_pl.rollouts.transformers_engine import TransformersEngine
from xtoken_pl.specs import PromptSettings
from xtoken_pl.utilities.checks import check_at_least_one, check_not_negative
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.seeds import run_seed

# The fraction of the square root of 2, times 2^64. Its multiples, modulo 2^64, are spread evenly, and so are those at
# the distance of a usual log interval; of the golden ratio, every 500th or 1000th multiple is nearly the same.
_IRRATIONAL = 0x6A09E667F3BCC909


class Rollouts:
    """On-policy training: in a share of the optimizer steps the student writes the text that it learns from.

    Args:
        share: Share of the optimizer steps that are on-policy, in [0, 1] (GKD's lambda); the others learn from the
            data as ever. At 1, without a warm-up, the data are read for their prompts alone.
        warm_up_steps: Number of optimizer steps before the first on-policy one; they learn from the data.
        max_new_tokens: Largest number of tokens of a rollout.
        temperature: Temperature of sampling; 0 takes the most probable token.
        top_p: Only the most probable tokens that together have this probability are drawn.
        top_k: Only so many most probable tokens are drawn; None for all.
        num_samples: Rollouts of each prompt; a batch then has so many times ``data.batch_size`` texts.
        prompt_bytes: Length of a prompt at the beginning of a window of a text, in bytes.
        prompt_end: Regular expression behind whose first match the prompt of a window of a text ends, in place of
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
        warm_up_steps: int = 0,
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
        _check_pattern(prompt_end)
        check_not_negative("warm_up_steps", warm_up_steps, "0 begins with the first step")
        check_not_negative("seed", 0 if seed is None else seed, "leave it out for that of seed_everything")
        self.share = share
        self.warm_up_steps = warm_up_steps
        self.sampling = Sampling(
            max_new_tokens,
            check_not_negative("temperature", temperature, "0 takes the most probable token"),
            top_p,
            top_k,
        )
        self.num_samples = num_samples
        self.seed = seed
        self.engine = TransformersEngine() if engine is None else engine
        self.prompts = PromptSettings(max_new_tokens, prompt_bytes, prompt_end, only=share == 1 and warm_up_steps == 0)

    def __str__(self) -> str:
        steps = f"share={self.share:g}, warm_up_steps={self.warm_up_steps}"
        engine = f"engine={type(self.engine).__name__}"
        return f"{steps}, num_samples={self.num_samples}, seed={self.draw_seed}, {self.sampling}, {engine}"

    @property
    def learns_data(self) -> bool:
        """Whether some steps learn from the data."""
        return not self.prompts.only

    @property
    def draw_seed(self) -> int:
        """Seed of all draws."""
        return run_seed() if self.seed is None else self.seed

    def is_on_policy(self, step: int) -> bool:
        """Whether the student writes the text of an optimizer step, a function of the step and the seed alone.

        Every stretch of n steps after the warm-up has ``share * n`` of them, to within a few.
        """
        return step >= self.warm_up_steps and (self.draw_seed + step + 1) * _IRRATIONAL % 2**64 < self.share * 2**64


def _check_pattern(pattern: str | None) -> None:
    if pattern is None:
        return
    try:
        matches_nothing = re.compile(pattern).fullmatch("") is not None
    except re.error as error:
        raise UserError(
            f"prompt_end must be a regular expression, got {pattern!r} ({error}); put a backslash before characters "
            "that are meant as they are"
        ) from None
    if matches_nothing:
        raise UserError(
            f"prompt_end must not match an empty text, but {pattern!r} does; leave it out for prompts of prompt_bytes"
        )
