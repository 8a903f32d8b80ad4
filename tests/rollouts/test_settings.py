"""The settings of on-policy training: which steps are, what is refused, and how a configuration names an engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from xtoken_pl import Rollouts
from xtoken_pl.rollouts import RolloutEngine, Sampling, TransformersEngine
from xtoken_pl.specs import PromptSettings
from xtoken_pl.utilities.errors import UserError

SHARES = [0.05, 0.25, 0.5, 0.7, 0.95]


def on_policy(share: float, seed: int = 0, num_steps: int = 30_000) -> np.ndarray:
    rollouts = Rollouts(share=share, seed=seed)
    return np.array([rollouts.is_on_policy(step) for step in range(num_steps)])


@pytest.mark.parametrize("seed", [0, 1, 1234, 2**32 - 1])
@pytest.mark.parametrize("share", SHARES)
def test_every_stretch_of_steps_has_the_share_to_within_a_few(share: float, seed: int) -> None:
    # The deviation of a stretch is the difference between those at its ends.
    deviations = np.cumsum(on_policy(share, seed) - share)
    assert deviations.max() - deviations.min() < 6


@pytest.mark.parametrize("share", SHARES)
def test_steps_at_equal_distance_have_the_share_too(share: float) -> None:
    steps = on_policy(share, num_steps=400_000)
    for period in range(2, 201):
        for first in range(period):
            assert steps[first::period].mean() == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("interval", [1, 2, 4, 5, 10, 20, 25, 32, 50, 64, 100, 200, 250, 500, 1000, 2000, 5000])
def test_log_intervals_soon_see_both_kinds_of_steps(interval: int) -> None:
    seen = on_policy(0.5, num_steps=200_000)[::interval][:30]
    assert 0 < seen.sum() < len(seen)
    assert np.abs(np.cumsum(seen - 0.5)).max() < 6


@pytest.mark.parametrize("share", [0, 1])
def test_at_share_zero_and_one_all_steps_are_alike(share: int) -> None:
    for seed in (0, 7, 2**32 - 1):
        assert set(on_policy(share, seed)) == {bool(share)}
    assert Rollouts(share=share).prompts.only == bool(share)


def test_no_step_of_the_warm_up_is_on_policy_and_the_others_are_as_without_it() -> None:
    rollouts = Rollouts(share=0.5, warm_up_steps=7, seed=0)
    steps = [rollouts.is_on_policy(step) for step in range(100)]
    assert not any(steps[:7])
    assert steps[7:] == on_policy(0.5, num_steps=100)[7:].tolist()
    assert not Rollouts(share=1, warm_up_steps=1).prompts.only  # the data are learned from first


def test_a_step_is_a_function_of_its_number_and_the_seed() -> None:
    steps = on_policy(0.5, seed=3)
    rollouts = Rollouts(share=0.5, seed=3)
    assert [rollouts.is_on_policy(step) for step in reversed(range(50))] == steps[:50][::-1].tolist()
    assert (on_policy(0.5, seed=4) != steps).any()


def test_the_seed_is_that_of_seed_everything_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert Rollouts().draw_seed == 17
    assert Rollouts(seed=0).draw_seed == 0
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert Rollouts().draw_seed == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, r"share must be in \[0, 1\], got 1.5"),
        ({"share": float("nan")}, r"share must be in \[0, 1\], got nan"),
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1, got 0"),
        ({"temperature": -1.0}, "temperature must be a finite number >= 0, got -1.0; 0 takes the most probable token"),
        ({"temperature": float("inf")}, "temperature must be a finite number >= 0, got inf"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0; 1 draws from all tokens"),
        ({"top_p": float("nan")}, r"top_p must be in \(0, 1\], got nan"),
        ({"top_k": 0}, "top_k must be >= 1, got 0"),
        ({"num_samples": 0}, "num_samples must be >= 1, got 0"),
        ({"prompt_bytes": 0}, "prompt_bytes must be >= 1, got 0"),
        ({"prompt_end": ""}, "prompt_end must not match an empty text, but '' does"),
        ({"prompt_end": "a*"}, "prompt_end must not match an empty text, but 'a\\*' does"),
        ({"prompt_end": "("}, r"prompt_end must be a regular expression, got '\(' \(missing \)"),
        ({"warm_up_steps": -1}, "warm_up_steps must be a finite number >= 0, got -1"),
        ({"seed": -1}, "seed must be a finite number >= 0, got -1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rollouts(**options)


def parsed(rollouts: Any) -> Rollouts | None:
    parser = ArgumentParser()
    parser.add_argument("--rollouts", type=Rollouts | None, default=None)
    built = parser.instantiate_classes(parser.parse_object({"rollouts": rollouts}))
    found: Rollouts | None = built["rollouts"]
    return found


def test_a_configuration_gives_settings_and_the_engine_by_their_classes() -> None:
    assert parsed(None) is None
    engine = {"class_path": "xtoken_pl.rollouts.TransformersEngine", "init_args": {"batch_size": 8}}
    options = {"share": 0.25, "max_new_tokens": 9, "temperature": 0.7, "top_k": 40, "prompt_end": "=", "engine": engine}
    rollouts = parsed({"class_path": "xtoken_pl.Rollouts", "init_args": options})
    assert rollouts is not None
    assert rollouts.sampling == Sampling(9, 0.7, 1.0, 40)
    assert rollouts.prompts == PromptSettings(9, 256, "=", only=False)
    assert isinstance(rollouts.engine, TransformersEngine)
    assert rollouts.engine.batch_size == 8


def test_the_engine_is_that_of_transformers_unless_another_is_given() -> None:
    class Own(RolloutEngine):
        def write(self, *_: Any) -> list[Any]:
            return []

    rollouts = parsed({"class_path": "xtoken_pl.Rollouts"})
    assert rollouts is not None
    assert isinstance(rollouts.engine, TransformersEngine)
    assert rollouts.engine.batch_size is None
    own = Own()
    assert Rollouts(engine=own).engine is own
