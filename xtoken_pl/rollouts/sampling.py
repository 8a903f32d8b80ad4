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

# Probability 1 as an integer. A probability below 2^-62 becomes 0; sums that exceed 1 by rounding stay below 2^63.
_ONE = 2.0**62


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
            # Below 1e-38 it would be 0 in float32.
            self._warpers.append(TemperatureLogitsWarper(max(float(sampling.temperature), 1e-30)))
        if sampling.top_k is not None:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._exists = torch.tensor(vocabulary.exists)
        self._missing_ids: Tensor | None = None  # known when the size of the head is
        self._uniform = uniform
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._missing_ids is None:
            # The head may have more rows than the tokenizer has ids, or fewer.
            exists = torch.nn.functional.pad(self._exists, (0, scores.shape[-1] - len(self._exists)), value=False)
            self._missing_ids = (~exists).nonzero()[:, 0].to(scores.device)
        scores = scores.index_fill(1, self._missing_ids, -torch.inf)
        if self._is_greedy:
            return scores
        numbers = self._uniform[:, input_ids.shape[1] - self._prompt_length]
        scores = scores - scores.amax(-1, keepdim=True)  # a temperature close to 0 must not make it infinite
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
    # Sums of integers are exact in any order: they only grow where a probability is above 0, on a GPU, too.
    cumulative = scores.to(device).softmax(-1).mul_(_ONE).long().cumsum_(-1)
    total = cumulative[:, -1:]
    threshold = (uniform.to(device)[:, None] * total).long().clamp(max=total - 1)
    chosen = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
    return chosen.clamp(max=scores.shape[-1] - 1).to(scores.device)  # logits that are NaN give any id
