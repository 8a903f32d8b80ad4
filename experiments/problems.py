"""The problems that models learn here, as lines of text: sums, two steps in words, sorted letters.

A line is a prompt and its answer: ``37+85=`` and ``122\\n``. Problems come in three splits that share no pair of
numbers, in whatever order, and no set of letters: ``learn``, ``search`` (for choosing a learning rate) and ``test``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import combinations, combinations_with_replacement
from math import factorial
from typing import Literal, NamedTuple

import numpy as np

Task = Literal["addition", "words", "letters"]
Split = Literal["learn", "search", "test"]

_MOST = 100  # operands are 0 to 99
_NUM_SUMS = 2 * _MOST - 1
# Of 5,050 unordered pairs; 4,030 are left to learn from.
_NUM_TEST_PAIRS, _NUM_SEARCH_PAIRS = 765, 255
_NAMES = ("Ann", "Ben", "Eve", "Kim", "Leo", "Max", "Sue", "Tom")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
_STORIES = (
    "{name} has {a} {things}, gets {b} and gives {c} away.",
    "{name} finds {a} {things} and {b} more. {other} takes {c}.",
    "There are {a} {things}. {name} adds {b}, {other} needs {c}.",
)
_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_WORD_LENGTH = 4


class Problem(NamedTuple):
    """A prompt, the right answer to the end of the line, and one drawn at random (which may be right by chance)."""

    prompt: str
    answer: str
    random_answer: str


def problems(task: Task, number: int, seed: int, split: Split = "learn") -> list[Problem]:
    """So many problems of a split, the same for the same arguments; all differ, but that a story may come again.

    Args:
        task: Sums ``37+85=122``; stories ``Ann has 37 pens, gets 45 and gives 12 away. 37+45=82, 82-12=70``; letters
            ``KQXB>BKQX``.
        number: How many.
        seed: Which.
        split: Where from.

    Raises:
        ValueError: If there are not so many.
    """
    return _MAKERS[task](number, np.random.default_rng(seed), split)


def noisy_lines(task: Task, number: int, random_share: float, seed: int) -> list[str]:
    """Lines to learn from, of which exactly the given share have a random answer, in random order."""
    drawn = problems(task, number, seed)
    is_random = np.random.default_rng(seed + 1).permutation(number) < round(random_share * number)
    return [
        problem.prompt + (problem.random_answer if at_random else problem.answer)
        for problem, at_random in zip(drawn, is_random.tolist(), strict=True)
    ]


def _sums(number: int, generator: np.random.Generator, split: Split) -> list[Problem]:
    pairs = _pairs(split)
    _check_number(number, len(pairs), "sums")
    return [
        Problem(f"{a}+{b}=", f"{a + b}\n", f"{generator.integers(_NUM_SUMS)}\n")
        for a, b in generator.permutation(pairs)[:number].tolist()
    ]


def _stories(number: int, generator: np.random.Generator, split: Split) -> list[Problem]:
    pairs = _pairs(split)
    made = []
    for a, b in pairs[generator.integers(0, len(pairs), number)].tolist():
        c = int(generator.integers(0, min(_MOST - 1, a + b) + 1))
        name, other = generator.choice(_NAMES, 2, replace=False).tolist()
        things, story = str(generator.choice(_THINGS)), str(generator.choice(_STORIES))
        prompt = story.format(name=name, other=other, things=things, a=a, b=b, c=c)
        # Either step is drawn, and the second follows from the first.
        first = int(generator.integers(c, _NUM_SUMS))
        steps = (a + b, int(generator.integers(_NUM_SUMS))) if generator.integers(2) else (first, first - c)
        made.append(Problem(prompt, _steps(a, b, c, a + b, a + b - c), _steps(a, b, c, *steps)))
    return made


def _steps(a: int, b: int, c: int, first: int, second: int) -> str:
    return f" {a}+{b}={first}, {first}-{c}={second}\n"


def _words(number: int, generator: np.random.Generator, split: Split) -> list[Problem]:
    sets = sum(_split_of(letters) == split for letters in combinations(_LETTERS, _WORD_LENGTH))
    _check_number(number, factorial(_WORD_LENGTH) * sets, "words")
    made: dict[str, Problem] = {}
    while len(made) < number:
        letters = generator.choice(_LETTERS, _WORD_LENGTH, replace=False).tolist()
        if _split_of(letters) == split:
            word = "".join(letters)
            at_random = "".join(generator.permutation(letters).tolist())
            made[word] = Problem(f"{word}>", f"{''.join(sorted(word))}\n", f"{at_random}\n")
    return list(made.values())


def _split_of(letters: Iterable[str]) -> Split:
    """By the letters, not their order; an eighth of them for each of the smaller splits."""
    remainder = sum(map(ord, letters)) % 8
    return "test" if remainder == 0 else "search" if remainder == 1 else "learn"


_MAKERS: dict[Task, Callable[[int, np.random.Generator, Split], list[Problem]]] = {
    "addition": _sums,
    "words": _stories,
    "letters": _words,
}


def _pairs(split: Split) -> np.ndarray:
    """``[N, 2]``: the pairs of a split in both orders, the same at every call."""
    unordered = np.random.default_rng(0).permutation(list(combinations_with_replacement(range(_MOST), 2)))
    test, search, learn = np.split(unordered, [_NUM_TEST_PAIRS, _NUM_TEST_PAIRS + _NUM_SEARCH_PAIRS])
    chosen = {"test": test, "search": search, "learn": learn}[split]
    return np.unique(np.concatenate([chosen, chosen[:, ::-1]]), axis=0)


def _check_number(number: int, most: int, what: str) -> None:
    if number > most:
        raise ValueError(f"there are {most:,} {what} to draw from, got {number:,}; ask for fewer")
