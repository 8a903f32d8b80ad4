"""Lengths that explode or collapse are noticed once, and steady lengths of any kind never are."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterable

import pytest

from xtoken_pl.callbacks import length_watch
from xtoken_pl.callbacks.length_watch import MEMORY, LengthWatch
from xtoken_pl.rollouts.statistics import RolloutCounts

LIMIT = 256


def counts(lengths: Iterable[int]) -> RolloutCounts:
    """Counts of texts of given lengths; those of the limit have not ended, and those of one token are empty."""
    lengths = list(lengths)
    ended = [length for length in lengths if length < LIMIT]
    return RolloutCounts(
        num_rollouts=len(lengths),
        num_tokens=sum(lengths),
        num_ended=len(ended),
        log_lengths=sum(map(math.log, ended)),
        num_empty=sum(length == 1 for length in lengths),
    )


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Messages so far, each with its kind before it."""
    found: list[str] = []
    for kind in ("warn", "info"):
        monkeypatch.setattr(
            length_watch, f"rank_zero_{kind}", lambda message, kind=kind: found.append(f"{kind}: {message}")
        )
    return found


def run(watch: LengthWatch, draw: Callable[[], int], *, num_logs: int, size: int = 32) -> None:
    for _ in range(num_logs):
        watch.add(counts(draw() for _ in range(size)), LIMIT)


def mixed(chance: random.Random, share_ended: float, low: int, high: int) -> Callable[[], int]:
    return lambda: chance.randint(low, high) if chance.random() < share_ended else LIMIT


@pytest.mark.parametrize("size", [2, 32, 4096])
def test_texts_that_no_longer_end_give_one_warning(said: list[str], size: int) -> None:
    watch, chance = LengthWatch(), random.Random(0)
    run(watch, mixed(chance, 0.9, 20, 60), num_logs=4 + 600 // size, size=size)
    assert said == []
    run(watch, mixed(chance, 0.02, 20, 60), num_logs=8 + 2000 // size, size=size)
    (message,) = said
    assert message.startswith("warn: the lengths of rollouts explode: ")
    assert f"max_new_tokens ({LIMIT})" in message
    for way_out in ("learning rate", "temperature", "rollouts.share", "learn_turn_end", "raise max_new_tokens"):
        assert way_out in message


def test_explosion_is_noticed_however_slowly_it_comes(said: list[str]) -> None:
    watch, chance = LengthWatch(), random.Random(0)
    for percent in range(95, 0, -1):
        run(watch, mixed(chance, percent / 100, 20, 60), num_logs=20)
    assert [message.split(": ")[1] for message in said] == ["the lengths of rollouts explode"]


@pytest.mark.parametrize("size", [2, 32, 4096])
def test_texts_that_become_short_give_one_warning(said: list[str], size: int) -> None:
    watch, chance = LengthWatch(), random.Random(0)
    run(watch, mixed(chance, 0.9, 80, 160), num_logs=4 + 600 // size, size=size)
    assert said == []
    run(watch, mixed(chance, 1.0, 3, 5), num_logs=8 + 3000 // size, size=size)
    (message,) = said
    assert message.startswith("warn: the lengths of rollouts collapse: their typical length is ")
    for way_out in ("learning rate", "rollouts.share", "forward divergence", "temperature"):
        assert way_out in message


@pytest.mark.parametrize("from_the_start", [True, False])
def test_empty_texts_give_one_warning(said: list[str], *, from_the_start: bool) -> None:
    watch, chance = LengthWatch(), random.Random(0)
    if not from_the_start:
        run(watch, mixed(chance, 1.0, 2, 6), num_logs=20)
        assert said == []
    run(watch, lambda: 1, num_logs=200)
    (message,) = said
    assert message.startswith("warn: the lengths of rollouts collapse: ")
    assert "have no text" in message


@pytest.mark.parametrize("size", [1, 4, 64, 2048])
@pytest.mark.parametrize(
    ("share_ended", "low", "high"),
    [(0.2, 1, 255), (0.3, 100, 200), (0.5, 2, 255), (0.9, 5, 50), (1.0, 2, 3)],
)
def test_steady_lengths_are_never_noticed(said: list[str], share_ended: float, low: int, high: int, size: int) -> None:
    chance = random.Random(size)
    run(LengthWatch(), mixed(chance, share_ended, low, high), num_logs=20_000 // size, size=size)
    assert said == []


def test_few_long_texts_among_short_ones_are_no_collapse_when_they_are_missing(said: list[str]) -> None:
    chance = random.Random(0)
    run(LengthWatch(), lambda: 250 if chance.random() < 0.02 else chance.randint(3, 6), num_logs=2000, size=8)
    assert said == []


def test_student_that_never_ends_its_texts_is_information_and_said_once(said: list[str]) -> None:
    watch = LengthWatch()
    run(watch, lambda: LIMIT, num_logs=100)
    (message,) = said
    assert message.startswith("info: 0% of the student's rollouts end with a stop token")
    assert "learn_turn_end: true" in message


def test_student_that_learns_to_end_its_texts_is_no_collapse(said: list[str]) -> None:
    watch, chance = LengthWatch(), random.Random(0)
    for percent in range(101):
        run(watch, mixed(chance, percent / 100, 10, 30), num_logs=10)
    assert [message[:5] for message in said] == ["info:"]  # of the beginning


def test_nothing_is_said_before_enough_texts_are_known(said: list[str]) -> None:
    watch = LengthWatch()
    run(watch, lambda: 1, num_logs=MEMORY - 1, size=1)
    assert said == []
    run(watch, lambda: 1, num_logs=1, size=1)
    assert len(said) == 1


def test_restored_watch_goes_on_where_it_was(said: list[str]) -> None:
    watch, chance = LengthWatch(), random.Random(0)
    run(watch, mixed(chance, 0.9, 80, 160), num_logs=30)
    watch = LengthWatch.from_state_dict(watch.state_dict())
    run(watch, lambda: LIMIT, num_logs=100)
    assert len(said) == 1
    run(LengthWatch.from_state_dict(watch.state_dict()), lambda: LIMIT, num_logs=100)
    assert len(said) == 1


def test_messages_are_a_warning_and_a_line_of_information() -> None:
    with pytest.warns(UserWarning, match="collapse"):
        run(LengthWatch(), lambda: 1, num_logs=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(LengthWatch(), lambda: LIMIT, num_logs=10)
