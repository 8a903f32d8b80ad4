"""Draws the next token of every row with numbers of the row's own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from xtoken_pl.rollouts.engine import Sampling
from xtoken_pl.tokenization import CanonicalVocabulary

# R rows, T new tokens, V rows of the student's head


class TokenSampler(LogitsProcessor):
    """Chooses the next token of every row: it gets the score 0, all others -inf, for a greedy search to find.

    A row's token is a function of its logits and its own uniform number u: the first token, in the order of ids, up to
    which the probabilities sum to more than u (inverse transform sampling). No generator's state is read or changed.

    Args:
        sampling: How the next token is drawn.
        vocabulary: The student's vocabulary; ids that no token has are never chosen.
        uniform: ``[R, T]`` numbers in [0, 1), see :func:`uniform_numbers`.
        prompt_length: Number of tokens in front of the first new one.

    Shape:
        input_ids: [R, prompt_length + tokens so far]; scores: [R, V] logits; returns: [R, V].
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: CanonicalVocabulary,
        uniform: Tensor,
        prompt_length: int,
    ) -> None:
        self._is_greedy = sampling.temperature == 0
        self._warpers = LogitsProcessorList()
        if not self._is_greedy and sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k is not None:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._exists = torch.tensor(vocabulary.exists)
        self._missing: Tensor | None = None
        self._uniform = uniform
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._missing is None:
            self._missing = ~_fit(self._exists, scores.shape[-1]).to(scores.device)
        scores = scores.masked_fill(self._missing, -torch.inf)
        if self._is_greedy:
            return scores
        numbers = self._uniform[:, input_ids.shape[1] - self._prompt_length]
        chosen = draw(self._warpers(input_ids, scores), numbers)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def uniform_numbers(seeds: list[tuple[int, ...]], count: int) -> NDArray[np.float64]:
    """Returns ``[seeds, count]`` numbers in [0, 1); a row is a function of its seed, and begins alike for any count."""
    generators = [np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))) for seed in seeds]
    return np.stack([generator.random(count) for generator in generators])


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """Draws a token from each row's softmax by inverse transform sampling; never one of probability 0.

    Args:
        scores: ``[R, V]`` logits in float32 at least, -inf for tokens that are not to be drawn.
        uniform: ``[R]`` numbers in [0, 1), in float64.

    Returns:
        ``[R]`` ids.
    """
    # MPS has no float64.
    device = torch.device("cpu") if scores.device.type == "mps" else scores.device
    probs = scores.to(device).softmax(-1)
    # The scan of a GPU may round so that a sum differs from the one before it without a probability in between.
    cumulative = probs.cumsum(-1, dtype=torch.float64).masked_fill_(probs == 0, 0)
    # Numbers are at most 1 - 2^-53, so that the product is less than the largest sum, also after rounding.
    threshold = uniform.to(device)[:, None] * cumulative.amax(-1, keepdim=True)
    return (cumulative > threshold).int().argmax(-1).to(scores.device)


def _fit(exists: Tensor, size: int) -> Tensor:
    """``[size]``: the head may have more rows than the tokenizer has ids, or fewer."""
    return torch.nn.functional.pad(exists, (0, size - len(exists)), value=False)
