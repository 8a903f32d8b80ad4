"""The precision of models, heads, W and metrics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, Precision
from module_steps import MakeModule, batch_for, step_of

from xtoken_pl import ProjectionKL, Student, Teacher
from xtoken_pl.batch.distill_batch import as_steps


def test_bfloat16_teacher_is_close_to_the_full_one(make: MakeModule, teacher_folder: str) -> None:
    half = make(teachers={"split": Teacher(model=teacher_folder, loss=ProjectionKL(), dtype="bfloat16")})
    full = make()
    batch = batch_for(full)
    assert half.loaded_teachers["split"].model.dtype == torch.bfloat16
    torch.testing.assert_close(step_of(half, batch)["kd"], step_of(full, batch)["kd"], rtol=0.05, atol=0)


def test_half_precision_keeps_w_and_the_sums_of_metrics_exact(make: MakeModule) -> None:
    module = make().to(torch.bfloat16)
    loss, metric = cast(Any, module.losses["split"]), cast(Any, module.validation_metrics["bits_per_byte"])
    assert module.student.dtype == torch.bfloat16
    for plan in (loss.product.forward_plan, loss.product.backward_plan):
        assert plan.first_weights.dtype == plan.rest_weights.dtype == torch.float32
    assert metric.total.dtype == torch.float64
    assert torch.isfinite(step_of(module, batch_for(module))["loss"])


def test_double_precision_teacher_serves_a_single_precision_student(make: MakeModule, teacher_folder: str) -> None:
    double = make(teachers={"split": Teacher(model=teacher_folder, loss=ProjectionKL(), dtype="float64")})
    single = make()
    batch = batch_for(single)
    torch.testing.assert_close(
        step_of(double, batch)["kd"], step_of(single, batch)["kd"], rtol=1e-4, atol=0, check_dtype=False
    )


@pytest.mark.parametrize("precision", [HalfPrecision("bf16-true"), HalfPrecision("16-true"), DoublePrecision()])
def test_lightning_converts_the_batches_of_a_step(make: MakeModule, precision: Precision) -> None:
    batch = batch_for(make())
    (step,) = as_steps([batch])
    converted = precision.convert_input(replace(batch, step=step))
    assert converted.step_counts == step
    assert torch.equal(converted.student.labels, batch.student.labels)


def test_head_gives_single_precision_whatever_the_weights(make: MakeModule, student: Student) -> None:
    half = make(student=Student(model=student.model, dtype="bfloat16"))
    weight = half.student_head.layer.weight
    assert weight.dtype == torch.bfloat16
    hidden = torch.randn(5, weight.shape[1], dtype=torch.bfloat16)
    log_probs = half.student_head.log_probs(hidden)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(5), rtol=0, atol=1e-5)
