"""Draws: their distribution, their numbers, and what is never drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from tiny_writers import HOLE, NUM_IDS, enumerated, filtered, letters, requests, tiny_student

from xtoken_pl.rollouts import Sampling, TransformersEngine
from xtoken_pl.rollouts.sampling import TokenSampler, draw, uniform_numbers

LARGEST = 1 - 2**-53  # of the numbers that numpy draws

SETTINGS = [
    Sampling(3),
    Sampling(3, temperature=0.5),
    Sampling(3, temperature=3.0, top_k=2),
    Sampling(3, top_p=0.8),
    Sampling(3, temperature=2.0, top_k=4, top_p=0.7),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_texts_are_as_frequent_as_they_are_probable(sampling: Sampling) -> None:
    student, count = tiny_student(scale=12.0), 6000
    expected = {ids: count * p for ids, p in enumerated(student, [1, 4], sampling).items()}
    assert sum(expected.values()) == pytest.approx(count)
    assert len(expected) > 5
    written = TransformersEngine().write(requests([[1, 4]] * count), sampling, student, letters())
    counts = Counter(rollout.ids for rollout in written)
    assert counts.keys() <= expected.keys()
    frequent = [ids for ids, number in expected.items() if number >= 5]
    cells = [(counts[ids], expected[ids]) for ids in frequent]
    rest = count - sum(number for _, number in cells)
    if rest >= 5:
        cells.append((count - sum(number for number, _ in cells), rest))
    statistic = sum((found - number) ** 2 / number for found, number in cells)
    assert statistic < chi2.ppf(0.999, len(cells) - 1)


@pytest.mark.parametrize("sampling", [*SETTINGS, Sampling(3, temperature=0)], ids=str)
def test_tokens_follow_the_reference_of_temperature_top_k_and_top_p(sampling: Sampling) -> None:
    logits = np.random.default_rng(0).normal(scale=2, size=(50, NUM_IDS))
    numbers = (np.arange(400) + 0.5) / 400  # evenly spread: frequencies are probabilities to within one number
    prompt = torch.ones(400, 1, dtype=torch.long)
    for row in logits:
        sampler = TokenSampler(sampling, letters(), torch.tensor(numbers)[:, None], prompt_length=1)
        scores = sampler(prompt, torch.tensor(row, dtype=torch.float32).repeat(400, 1))
        frequencies = np.bincount(scores.argmax(-1).numpy(), minlength=NUM_IDS) / 400
        np.testing.assert_allclose(frequencies, filtered(row, sampling), rtol=0, atol=1 / 400 + 1e-6)


@pytest.mark.parametrize("size", [HOLE + 2, NUM_IDS, NUM_IDS + 5])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_without_a_token_are_never_chosen(size: int, temperature: float) -> None:
    uniform = torch.tensor([[0.0], [0.5], [LARGEST]], dtype=torch.float64)
    sampler = TokenSampler(Sampling(1, temperature), letters(), uniform, prompt_length=1)
    logits = torch.zeros(3, size)
    logits[:, HOLE] = 50.0
    logits[:, NUM_IDS:] = 60.0
    chosen = sampler(torch.ones(3, 1, dtype=torch.long), logits).argmax(-1)
    assert letters().exists[chosen.numpy()].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_no_number_draws_a_token_of_probability_zero(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(200, 3000, generator=generator) * 20).to(dtype).float()
    scores[torch.rand(scores.shape, generator=generator) < 0.9] = -torch.inf
    scores[:, 0] = scores[:, -1] = -torch.inf
    for number in (0.0, 2**-53, 0.3, 1 - 2**-24, LARGEST):
        chosen = draw(scores, torch.full((200,), number, dtype=torch.float64))
        assert (scores.softmax(-1).gather(1, chosen[:, None]) > 0).all()


def test_the_smallest_and_largest_numbers_draw_the_first_and_last_tokens() -> None:
    scores = torch.full((1, 1000), -torch.inf)
    scores[0, [7, 500, 991]] = torch.tensor([0.0, 1.0, -20.0])
    drawn = [draw(scores, torch.tensor([number], dtype=torch.float64)).item() for number in (0.0, 0.5, LARGEST)]
    assert drawn == [7, 500, 991]


def test_a_probability_of_1e_minus_9_is_drawn_as_often_as_it_is_probable() -> None:
    scores = torch.log(torch.tensor([[1.0, 1e-9, 1.0]], dtype=torch.float64)).float()
    middle = 1 / (2 + 1e-9)
    inside = torch.tensor([middle + 5e-10 * middle], dtype=torch.float64)
    assert draw(scores, inside).item() == 1
    assert draw(scores, inside - 1e-9).item() == 0
    assert draw(scores, inside + 1e-9).item() == 2


@pytest.mark.parametrize("temperature", [1e-8, 1e-30, 1e-300])
def test_a_temperature_close_to_zero_takes_the_most_probable_token(temperature: float) -> None:
    uniform = torch.rand(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(50, NUM_IDS, generator=torch.Generator().manual_seed(0)) * 1000
    prompt = torch.ones(50, 1, dtype=torch.long)
    greedy, drawn = (
        TokenSampler(Sampling(1, value), letters(), uniform, prompt_length=1)(prompt, logits).argmax(-1)
        for value in (0.0, temperature)
    )
    torch.testing.assert_close(drawn, greedy, rtol=0, atol=0)


def test_logits_that_are_no_numbers_still_give_ids() -> None:
    sampler = TokenSampler(Sampling(1), letters(), torch.tensor([[0.5]], dtype=torch.float64), prompt_length=1)
    scores = sampler(torch.ones(1, 1, dtype=torch.long), torch.full((1, NUM_IDS), torch.nan))
    assert 0 <= scores.argmax(-1).item() < NUM_IDS


def test_numbers_are_a_function_of_the_seed_alone() -> None:
    seeds = [(0, 1, 2, 3), (0, 1, 3, 3), (2**32 - 1, 1, 2, 3), (0, 1, 2, 4)]
    numbers = uniform_numbers(seeds, 50)
    np.testing.assert_array_equal(uniform_numbers(seeds[::-1], 50)[::-1], numbers)
    np.testing.assert_array_equal(uniform_numbers(seeds, 7), numbers[:, :7])  # whatever max_new_tokens is
    assert len(np.unique(numbers)) == numbers.size
    # Independent of the engine's code: a saved run must be repeatable.
    np.testing.assert_array_equal(numbers[0], np.random.Generator(np.random.Philox(seed=[0, 1, 2, 3])).random(50))
