"""The optimizer, its parameter groups and its learning rate schedule."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from module_steps import MakeModule

from xtoken_pl import OptimizerRecipe


def test_optimizer_warms_up_then_follows_a_cosine_and_decays_matrices_only(make: MakeModule) -> None:
    module = make()
    recipe = OptimizerRecipe(learning_rate=1e-2, warmup_fraction=0.1, weight_decay=0.3)
    optimizer, scheduler = recipe.build(module.parameters(), 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 0
    assert rates[10] == pytest.approx(1e-2)
    assert rates[55] == pytest.approx(0.5e-2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    decays = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {2: 0.3, 1: 0.0}


def test_schedule_without_an_end_is_refused(make: MakeModule) -> None:
    with pytest.raises(ValueError, match=r"set trainer\.max_steps or trainer\.max_epochs"):
        OptimizerRecipe().build(make().parameters(), float("inf"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_lose_steps_are_warned_of(
    make: MakeModule, dtype: torch.dtype, recwarn: pytest.WarningsRecorder
) -> None:
    module = make()
    OptimizerRecipe().build(module.parameters(), 10)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"trained weights are in half precision: .* lost"):
        OptimizerRecipe().build(module.to(dtype).parameters(), 10)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("weight_decay", -0.1),
        ("warmup_fraction", 1.0),
        ("betas", (1.5, 0.9)),
    ],
)
def test_optimizer_values_out_of_range_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be .*, got {re.escape(str(value))}"):
        OptimizerRecipe(**{option: value})
