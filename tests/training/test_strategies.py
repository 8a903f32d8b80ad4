"""Strategies: ``fsdp2`` is registered, and others that take models apart are refused."""

from __future__ import annotations

import subprocess
import sys

import lightning.pytorch as pl
import pytest
from jsonargparse import Namespace
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry

from xtoken_pl.training.strategies import FSDP2Strategy, check_strategy, check_strategy_choice
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import parallel_sizes

_PATH = "lightning.pytorch.strategies."


def trainer_of(**options: object) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)  # type: ignore[arg-type]


def test_the_name_is_known_to_lightning_once_a_module_is_imported() -> None:
    script = (
        "from lightning.pytorch import Trainer\n"
        "from xtoken_pl import MultiTeacherDistillModule\n"
        "print(type(Trainer(strategy='fsdp2', accelerator='cpu', devices=2, logger=False).strategy).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "FSDP2Strategy"


def test_every_other_strategy_of_lightning_is_refused_with_the_lines_that_work() -> None:
    names = [name for name in StrategyRegistry.available_strategies() if name.startswith(("fsdp", "deepspeed"))]
    names.remove("fsdp2")
    assert {"fsdp", "fsdp_cpu_offload", "deepspeed_stage_2", "deepspeed_stage_3_offload"} <= set(names)
    for name in [*names, "FSDP"]:
        with pytest.raises(UserError, match=rf"'{name}' is not supported.* --trainer.strategy fsdp2 .*strategy ddp "):
            check_strategy_choice(name)


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_a_class_is_refused_before_it_is_created(name: str) -> None:
    with pytest.raises(UserError, match="is not supported"):
        check_strategy_choice(Namespace(class_path=_PATH + name, init_args=Namespace()))


@pytest.mark.parametrize(
    "strategy",
    [
        "auto",
        "ddp",
        "ddp_find_unused_parameters_true",
        "fsdp2",
        Namespace(class_path=f"{_PATH}DDPStrategy", init_args=Namespace(start_method="popen")),
        Namespace(class_path=f"{_PATH}ModelParallelStrategy", init_args=Namespace(data_parallel_size=2)),
        DDPStrategy(),
    ],
    ids=lambda strategy: strategy if isinstance(strategy, str) else type(strategy).__name__,
)
def test_other_strategies_are_accepted(strategy: object) -> None:
    check_strategy_choice(strategy)


@pytest.mark.parametrize("name", ["ddp_spawn", "ddp_fork", "ddp_notebook_find_unused_parameters_true"])
def test_a_strategy_that_leaves_the_student_in_another_process_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"--trainer\.strategy ddp starts the run again"):
        check_strategy_choice(name)


@pytest.mark.parametrize("sizes", [{"tensor_parallel_size": 1}, {"data_parallel_size": 2}, {"data_parallel_size": 4}])
def test_sizes_that_do_not_fit_the_processes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"for 2 processes.*--trainer\.strategy fsdp2"):
        check_strategy(trainer_of(devices=2, strategy=ModelParallelStrategy(**sizes)))  # type: ignore[arg-type]


def test_a_model_is_not_split_over_nodes() -> None:
    with pytest.raises(UserError, match=r"that divides the devices of a node; got 1 and 4 for 4 processes"):
        check_strategy(trainer_of(devices=2, num_nodes=2, strategy=ModelParallelStrategy(1, 4)))


@pytest.mark.parametrize("sizes", [(), (2, 1), (1, 2)])
def test_sizes_that_fit_are_accepted(sizes: tuple[int, ...]) -> None:
    check_strategy(trainer_of(devices=2, strategy=ModelParallelStrategy(*sizes)))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-true"])
def test_fsdp2_accepts_the_precisions_of_its_long_form(precision: str) -> None:
    check_strategy(trainer_of(devices=2, strategy="fsdp2", precision=precision))


def test_fsdp2_refuses_a_precision_that_its_long_form_refuses() -> None:
    with pytest.raises(ValueError, match="64-true"):
        trainer_of(devices=2, strategy=ModelParallelStrategy(2, 1), precision="64-true")
    with pytest.raises(UserError, match=r"trainer\.precision must be .*got '64-true'"):
        check_strategy(trainer_of(devices=2, strategy="fsdp2", precision="64-true"))


def test_fsdp2_takes_its_sizes_from_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = trainer_of(devices=3, num_nodes=2, strategy="fsdp2").strategy
    assert isinstance(strategy, FSDP2Strategy)
    monkeypatch.setattr(ModelParallelStrategy, "setup_environment", lambda self: None)
    strategy.setup_environment()
    assert parallel_sizes(strategy) == (6, 1)
