"""The run to plan is read from a configuration; unsupported settings are named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import write_architecture
from own_losses import hidden_cosine
from planned import write_models
from small_models import packing_tokenizer

from xtoken_pl import (
    BytePrefixKL,
    ConfidenceWeighting,
    DistillDataModule,
    MultiTeacherDistillModule,
    ProjectionKL,
    Rollouts,
    SpanLoss,
    Student,
    Teacher,
    Weighting,
)
from xtoken_pl.data import TextSource
from xtoken_pl.plan.replay import replay
from xtoken_pl.plan.run import Run
from xtoken_pl.plan.skeleton import Skeleton


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def planned_run(models: Path, trainer: dict[str, Any], num_gpus: int | None = None) -> Run:
    module = MultiTeacherDistillModule(Student(model=str(models / "student")), kd_weight=0.0)
    data = DistillDataModule(TextSource(path="texts.jsonl"))
    return Run.from_parts(module, data, trainer, num_gpus)


def model_parallel(size: int | str, tensor: int | str = 1) -> dict[str, Any]:
    return {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": size, "tensor_parallel_size": tensor},
    }


@pytest.mark.parametrize(
    ("trainer", "num_gpus", "expected"),
    [
        ({}, None, (1, "alone", 1)),
        ({"devices": "auto", "strategy": "auto"}, None, (1, "alone", 1)),
        ({"devices": 8, "num_nodes": 2, "strategy": "auto"}, None, (16, "buckets", 1)),
        ({"devices": "0,1", "strategy": "ddp_find_unused_parameters_true"}, None, (2, "buckets", 1)),
        ({"devices": 8, "num_nodes": 16, "strategy": model_parallel(128)}, None, (128, "sharded", 128)),
        ({"devices": 8, "strategy": model_parallel(8)}, 64, (64, "sharded", 64)),
        ({"devices": 8, "num_nodes": 2, "strategy": "fsdp2"}, None, (16, "sharded", 16)),
        ({"devices": 8, "strategy": "fsdp2"}, 64, (64, "sharded", 64)),
    ],
)
def test_gpus_and_strategy_are_read_from_the_trainer(
    models: Path, trainer: dict[str, Any], num_gpus: int | None, expected: tuple[int, str, int]
) -> None:
    run = planned_run(models, trainer, num_gpus)
    assert (run.num_gpus, run.spread, run.data_parallel_size) == expected


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"strategy": "fsdp"}, "got 'fsdp'; plan with one of them: --trainer.strategy fsdp2"),
        ({"devices": 0}, "num_gpus must be >= 1, got 0"),
        ({"devices": "all"}, "a list or 'auto', got 'all'"),
        ({"precision": "transformer-engine"}, "got 'transformer-engine'; plan with one of them"),
        ({"devices": 8, "strategy": model_parallel("auto", "auto")}, "tensor_parallel_size must be 1, got 'auto'"),
        ({"devices": 8, "strategy": model_parallel(4, 2)}, "tensor_parallel_size must be 1, got 2"),
    ],
)
def test_unsupported_settings_are_named(models: Path, trainer: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        planned_run(models, trainer)


def test_cacheable_teachers_depend_on_loss_and_weighting(models: Path) -> None:
    def cacheable(loss: SpanLoss, weighting: Weighting | None = None) -> frozenset[str]:
        teachers = {"t": Teacher(model=str(models / "student"), loss=loss)}
        module = MultiTeacherDistillModule(Student(model=str(models / "student")), teachers, weighting)
        return Run.from_parts(module, DistillDataModule(TextSource(path="x")), {}).cacheable

    assert cacheable(ProjectionKL()) == {"t"}
    assert cacheable(BytePrefixKL()) == {"t"}
    assert cacheable(ProjectionKL(merge="mean")) == {"t"}
    assert cacheable(ProjectionKL(), ConfidenceWeighting("entropy")) == {"t"}
    assert cacheable(hidden_cosine(32, 32)) == frozenset()


def test_servable_teachers_depend_on_temperature_and_what_is_read(models: Path) -> None:
    def servable(loss: SpanLoss, **options: Any) -> frozenset[str]:
        teachers = {"t": Teacher(model=str(models / "student"), loss=loss, **options)}
        module = MultiTeacherDistillModule(Student(model=str(models / "student")), teachers, rollouts=Rollouts(share=1))
        return Run.from_parts(module, DistillDataModule(TextSource(path="x")), {}).servable

    assert servable(BytePrefixKL()) == servable(ProjectionKL(merge="mean")) == {"t"}
    assert servable(ProjectionKL(), temperature=2.0) == frozenset()
    reader = ProjectionKL()
    reader.needs_hidden_states = True
    assert servable(reader) == frozenset()


def test_teachers_that_nothing_is_learned_from_are_idle(models: Path) -> None:
    def idle(kd_weight: float) -> frozenset[str]:
        teachers = {"t": Teacher(model=str(models / "student"))}
        module = MultiTeacherDistillModule(Student(model=str(models / "student")), teachers, kd_weight=kd_weight)
        return Run.from_parts(module, DistillDataModule(TextSource(path="x")), {}).idle

    assert (idle(0.0), idle(0.1)) == ({"t"}, frozenset())


def test_model_whose_pass_depends_on_values_is_refused_by_name(tmp_path: Path) -> None:
    """A loop over the experts that have tokens, as models outside of transformers have."""
    experts = {"model_type": "mixtral", "num_local_experts": 4, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(experts | sizes))
    skeleton = Skeleton.from_source(Student(model=str(tmp_path)), role="student")
    skeleton.model.set_experts_implementation("eager")
    with pytest.raises(ValueError, match="MixtralForCausalLM cannot be planned"):
        replay(skeleton, 2, 8, autocast=None, trains=True)


def test_grouped_product_of_unknown_shape_is_refused_rather_than_miscounted(tmp_path: Path) -> None:
    """As many rows for each expert, ``[E, S, K], [E, K, N] -> [E, S, N]``."""
    model = write_architecture(tmp_path, "llama", packing_tokenizer())
    skeleton = Skeleton.from_source(Student(model=model), role="student")
    layer: Any = skeleton.model.get_submodule("model.layers.0.mlp")
    layer.forward = lambda states: torch._grouped_mm(states, states.new_empty(2, 32, 32))
    with pytest.raises(ValueError, match="grouped product of tensors with 3 and 3 dimensions is not known"):
        replay(skeleton, 2, 8, autocast=torch.bfloat16, trains=False)


@pytest.mark.slow
def test_scans_are_planned_without_the_kernels_that_are_installed_for_them(tmp_path: Path) -> None:
    """A package of kernels that needs a GPU, as the process sees it that plans on a machine without one."""
    (tmp_path / "fla").mkdir()
    kernel = "def chunk_gated_delta_rule(*args, **options):\n    raise AssertionError('needs a GPU')\n"
    (tmp_path / "fla" / "__init__.py").write_text(kernel)
    model = write_architecture(tmp_path / "model", "qwen3_5_text", packing_tokenizer())
    code = (
        "from xtoken_pl import Student\n"
        "from xtoken_pl.plan.replay import replay\n"
        "from xtoken_pl.plan.skeleton import Skeleton\n"
        f"skeleton = Skeleton.from_source(Student(model={model!r}), role='student')\n"
        "print(replay(skeleton, 2, 64, autocast=None, trains=True).backward.total)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = replay(
        Skeleton.from_source(Student(model=model), role="student"), 2, 64, autocast=None, trains=True
    ).backward.total
    assert int(done.stdout.split()[-1]) == expected


@pytest.mark.parametrize("name", ["mamba", pytest.param("falcon_mamba", marks=pytest.mark.slow)])
def test_memory_of_scans_without_attention_depends_on_the_number_of_tokens(tmp_path: Path, name: str) -> None:
    """Shorter windows, and more of them, need slightly more, for the state of each."""
    skeleton = Skeleton.from_source(
        Student(model=write_architecture(tmp_path, name, packing_tokenizer())), role="student"
    )
    short, long = (replay(skeleton, *shape, autocast=None, trains=True).backward.total for shape in ((8, 32), (2, 128)))
    assert long <= short <= 1.01 * long
