"""A whole step of models with transformed heads has loss and gradient of full logits from the models themselves.

In blocks, by an adapter, and in two processes, sharded or not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
#: Factor on the bound in single precision: the four parallel streams of Gemma 3n round more.
ROUNDING = {"gemma3n_text": 2.0}
#: Budgets in bytes for the logits of a step of about 100 rows, each about 320 wide: a few rows at a time, a half, all.
BUDGETS = (2e4, 2e5, 1e9)
_FAST = {("gemma2", "float64", "whole"), ("granite", "float64", "lora"), ("cohere", "float32", "whole")}

STRATEGIES = ("ddp", "fsdp2")

Step = dict[str, Tensor]
Reference = Callable[[str, str, str], tuple[MultiTeacherDistillModule, list[dict[str, Any]], Step]]
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
    """The module, the windows of its step, and that step by full logits from the models themselves."""
    known: dict[tuple[str, str, str], tuple[MultiTeacherDistillModule, list[dict[str, Any]], Step]] = {}

    def find(name: str, dtype: str, trained: str) -> tuple[MultiTeacherDistillModule, list[dict[str, Any]], Step]:
        if (name, dtype, trained) not in known:
            with comparable():
                module = make_module(folders_in(root / name), dtype, trained)
                module.setup("fit")
                module.configure_model()
            columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 64)(STEP_TEXTS)
            windows = [{key: column[i] for key, column in columns.items()} for i in range(len(STEP_TEXTS))]
            loss = slow_step(module, windows, TEMPERATURE, running(dtype))
            loss.backward()
            known[name, dtype, trained] = module, windows, {"loss": loss.detach(), **gradients(module)}
        return known[name, dtype, trained]

    return find


def gradients(module: MultiTeacherDistillModule) -> Step:
    found = {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}
    module.zero_grad()
    return found


def assert_close(found: Step, expected: Step, name_of_model: str, dtype: str) -> None:
    assert found.keys() == expected.keys()
    bound = BOUND[dtype] * (ROUNDING.get(name_of_model, 1.0) if dtype == "float32" else 1.0)
    sizes = {name: float(value.abs().max()) for name, value in expected.items()}
    largest = max(size for name, size in sizes.items() if name != "loss")
    for name, value in expected.items():
        is_alone = dtype == "float64" and sizes[name] > 0  # Gemma 4 has weights whose gradient is 0 here
        size = sizes[name] if is_alone or name == "loss" else largest
        difference = float((found[name].double() - value.double()).abs().max()) / size
        assert difference <= bound, f"{name}: {difference:.3g} of the largest entry"


@every_case
def test_a_step_in_blocks_is_that_of_full_logits(reference: Reference, case: tuple[str, str, str]) -> None:
    name, dtype, trained = case
    module, windows, expected = reference(*case)
    assert module.student_head.transform == module.loaded_teachers["other"].head.transform == TRANSFORMED[name]
    assert any("lora_A" in key for key in expected) == (trained == "lora")
    for budget in BUDGETS:
        module.logit_memory = LogitMemory(budget)
        step: Any = module.training_step(collate(windows, ["other", "same"]), 0)
        step["loss"].backward()
        assert_close({"loss": step["loss"].detach(), **gradients(module)}, expected, name, dtype)


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
    processes: dict[str, Step], reference: Reference, case: tuple[str, str, str], strategy: str
) -> None:
    start = "/".join(case) + "/"
    found = {key.removeprefix(start): value for key, value in processes[strategy].items() if key.startswith(start)}
    assert_close(found, reference(*case)[2], *case[:2])
