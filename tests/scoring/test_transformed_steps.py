"""A whole step of models with transformed heads has loss and gradient of full logits from the models themselves.

In blocks, by an adapter, and in two processes, sharded or not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file
from slow_step import slow_step
from torch import Tensor
from transformed_steps import (
    DTYPES,
    STEP_TEXTS,
    TEMPERATURE,
    TRAINED,
    TRANSFORMED,
    comparable,
    folders_in,
    make_module,
    running,
    write_all,
)

from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.data import Windower, collate
from xtoken_pl.scoring.memory import LogitMemory

#: Largest difference of a loss, relative to it, and of a gradient, relative to its largest entry: in single precision
#: that of all parameters, in double precision that of each one.
BOUND = {"float32": 1e-6, "float64": 1e-10}
#: Texts that a model reads as one padded batch: all of them, or those of each process. In single precision a model's
#: own full logits have a gradient that depends on it, by up to 4.7e-6 of the largest entry (Gemma 4 and Beam).
ALL, DIVIDED = ((0, 1, 2, 3),), ((0, 2), (1, 3))
#: Budgets in bytes for the logits of a step of about 100 rows, each about 320 wide: a few rows at a time, a half, all.
BUDGETS = (2e4, 2e5, 1e9)
_FAST = {("gemma2", "float64", "whole"), ("granite", "float64", "lora"), ("cohere", "float32", "whole")}

STRATEGIES = ("ddp", "fsdp2")

Case = tuple[str, str, str]
Step = dict[str, Tensor]


class Expected(NamedTuple):
    """A step by full logits, and how much of its largest entry its gradients may be off."""

    step: Step
    bound: float


Batches = tuple[tuple[int, ...], ...]
Reference = Callable[[Case, Batches], Expected]
CASES = [(name, dtype, trained) for name in TRANSFORMED for dtype in DTYPES for trained in TRAINED]
every_case = pytest.mark.parametrize(
    "case", [pytest.param(case, id="-".join(case), marks=() if case in _FAST else pytest.mark.slow) for case in CASES]
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformed")
    write_all(folder, list(TRANSFORMED))
    return folder


@pytest.fixture(scope="module")
def reference(root: Path) -> Reference:
    """The step of each case by full logits from the models themselves.

    In single precision, gradients may differ by the bound, or by as much as those of full logits differ from the exact
    ones, those of double precision: by 3.4e-5 for Gemma 4, 4e-6 for Gemma 3n.
    """

    @cache
    def step(case: Case, batches: Batches) -> Step:
        module, windows = build(root, case)
        loss = slow_step(module, windows, TEMPERATURE, running(case[1]), batches)
        loss.backward()
        return {"loss": loss.detach(), **gradients(module)}

    def find(case: Case, batches: Batches) -> Expected:
        name, dtype, trained = case
        if dtype == "float64":
            return Expected(step(case, ALL), BOUND[dtype])
        found, exact = step(case, batches), step((name, "float64", trained), ALL)
        return Expected(found, max(BOUND[dtype], *differences(found, exact, dtype).values()))

    return find


def build(root: Path, case: Case) -> tuple[MultiTeacherDistillModule, list[dict[str, Any]]]:
    """The module, and the windows of its step."""
    name, dtype, trained = case
    with comparable():
        module = make_module(folders_in(root / name), dtype, trained)
        module.setup("fit")
        module.configure_model()
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 64)(STEP_TEXTS)
    return module, [{key: column[i] for key, column in columns.items()} for i in range(len(STEP_TEXTS))]


def gradients(module: MultiTeacherDistillModule) -> Step:
    found = {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}
    module.zero_grad()
    return found


def differences(found: Step, expected: Step, dtype: str) -> dict[str, float]:
    """Largest difference of each gradient, see `BOUND`."""
    assert found.keys() == expected.keys()
    sizes = {name: float(value.abs().max()) for name, value in expected.items() if name != "loss"}
    largest = max(sizes.values())

    def difference(name: str, size: float) -> float:
        is_alone = dtype == "float64" and size > 0  # Gemma 4 has weights whose gradient is 0 here
        apart = (found[name].double() - expected[name].double()).abs().max()
        return float(apart) / (size if is_alone else largest)

    return {name: difference(name, size) for name, size in sizes.items()}


def assert_close(found: Step, expected: Expected, dtype: str) -> None:
    loss = expected.step["loss"]
    assert abs(found["loss"] - loss) <= BOUND[dtype] * loss
    for name, difference in differences(found, expected.step, dtype).items():
        assert difference <= expected.bound, f"{name}: {difference:.3g} of the largest entry"


@every_case
def test_a_step_in_blocks_is_that_of_full_logits(root: Path, reference: Reference, case: Case) -> None:
    name, dtype, trained = case
    expected, (module, windows) = reference(case, ALL), build(root, case)
    assert module.student_head.transform == module.loaded_teachers["other"].head.transform == TRANSFORMED[name]
    assert any("lora_A" in key for key in expected.step) == (trained == "lora")
    for budget in BUDGETS:
        module.logit_memory = LogitMemory(budget)
        step: Any = module.training_step(collate(windows, ["other", "same"]), 0)
        step["loss"].backward()
        assert_close({"loss": step["loss"].detach(), **gradients(module)}, expected, dtype)


@pytest.fixture(scope="module")
def processes(root: Path) -> dict[str, Step]:
    """Steps of every case by strategy; two processes divide the texts."""
    script = Path(__file__).parents[1] / "helpers/transformed_steps.py"
    for strategy in STRATEGIES:
        done = subprocess.run(
            [sys.executable, str(script), strategy, str(root)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    return {strategy: load_file(root / f"{strategy}.safetensors") for strategy in STRATEGIES}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_step_of_two_processes_is_that_of_full_logits(
    processes: dict[str, Step], reference: Reference, case: Case, strategy: str
) -> None:
    start = "/".join(case) + "/"
    found = {key.removeprefix(start): value for key, value in processes[strategy].items() if key.startswith(start)}
    assert_close(found, reference(case, DIVIDED), case[1])
