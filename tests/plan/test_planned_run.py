"""The run to plan is read from a configuration; unsupported settings are named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from own_losses import hidden_cosine
from planned import write_models

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
