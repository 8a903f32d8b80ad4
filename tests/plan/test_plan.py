"""Planned memory agrees with what torch allocates on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_steps import measured_step, planned_step
from planned import measured_passes, run_of, write_models
from small_models import splitting_tokenizer
from torch import nn
from torch.optim import AdamW

from xtoken_pl import HybridKL, Server, Student, Teacher, TokenKL
from xtoken_pl.models.loading import load_causal_lm
from xtoken_pl.plan.moments import MemoryPlan
from xtoken_pl.plan.replay import replay
from xtoken_pl.plan.report import table
from xtoken_pl.plan.run import Run
from xtoken_pl.plan.skeleton import Skeleton


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


# Terms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("name", ["student", "tied"])
def test_weights_gradients_and_optimizer_are_those_of_a_real_step(models: Path, name: str, precision: str) -> None:
    student = Student(model=str(models / name))
    model = load_causal_lm(student, role="student")
    model.to(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    optimizer = AdamW(model.parameters())
    model(input_ids=torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()
    parameters = list(model.parameters())
    measured = {
        "student: weights": sum(parameter.nbytes for parameter in parameters),
        "student: gradients": sum(parameter.grad.nbytes for parameter in parameters),  # type: ignore[union-attr]
        "student: optimizer": sum(value.nbytes for state in optimizer.state.values() for value in state.values()),
    }
    alone = MemoryPlan.from_run(run_of(models, student=student, precision=precision)).peak.terms
    sharded = MemoryPlan.from_run(
        run_of(models, student=student, precision=precision, spread="sharded", num_gpus=2, data_parallel_size=2)
    ).peak.terms
    for term, num_bytes in measured.items():
        assert alone[term] == pytest.approx(num_bytes, rel=0.01)
        assert sharded[term] == pytest.approx(num_bytes / 2, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_replayed_pass_holds_as_much_as_a_real_one(models: Path, autocast: bool, checkpointing: bool) -> None:
    """Within 1%, the kernels' workspaces included; saved tensors without activation checkpointing."""
    source, shape = Student(model=str(models / "student")), (8, 128)
    model: Any = load_causal_lm(source, role="student").train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    real = measured_passes(model, *shape, autocast=autocast)
    planned = replay(
        Skeleton.from_source(source, role="student"),
        *shape,
        autocast=torch.bfloat16 if autocast else None,
        trains=True,
        activation_checkpointing=checkpointing,
    )
    assert planned.backward.total == pytest.approx(real.peak, rel=0.01)
    if not checkpointing:
        assert planned.until_backward.total == pytest.approx(real.saved, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_planned_peak_is_a_close_upper_bound_of_a_real_step(models: Path, checkpointing: bool) -> None:
    """Whole training step with a teacher, without the allowances for CUDA and fragmentation."""
    student = Student(model=str(models / "tied"), activation_checkpointing=checkpointing)
    teachers = {"t": Teacher(model=str(models / "student"), loss=TokenKL())}
    run = Run(student, teachers, 8, 128, logits_memory=5_000_000)
    measured = measured_step(run)
    assert measured <= planned_step(run) <= 1.3 * measured


def test_flash_attention_is_planned_without_being_installed(models: Path) -> None:
    """It needs no attention mask, which sdpa saves for every layer of a batch with padding."""
    source = Student(model=str(models / "student"))
    sdpa, flash = (
        replay(
            Skeleton.from_source(replace(source, attn_implementation=name), role="student"),
            2,
            256,
            autocast=None,
            trains=True,
        )
        for name in ("sdpa", "flash_attention_2")
    )
    masks = 2 * 2 * 256 * 256 * 4  # layers, windows, T x T, bytes of a float32
    difference = sdpa.until_backward.total - flash.until_backward.total
    assert difference == pytest.approx(masks, rel=0.3)


# Moments -------------------------------------------------------------------------------------------------------------


def test_cached_teacher_needs_memory_for_its_rows_but_not_for_weights(models: Path) -> None:
    run = run_of(models)
    run.teachers["t"].cache = "to be built"
    plan = MemoryPlan.from_run(run)
    of_teacher = {term for moment in plan.moments for term in moment.terms if term.startswith("teacher t")}
    assert {term.removeprefix("teacher t: ") for term in of_teacher} <= {"W and loss tables", "cached rows"}
    assert plan.peak.terms["teacher t: cached rows"] == run.batch_size * run.sequence_length * (64 * 6 + 12)


@pytest.mark.parametrize(("top_k", "row_bytes"), [(64, 64 * 8 + 8), ("all", None)])
def test_served_teacher_needs_memory_for_its_rows_but_not_for_weights(
    models: Path, tmp_path: Path, top_k: Any, row_bytes: int | None
) -> None:
    folder = tmp_path / "tokenizer"  # no config.json, no weights
    num_tokens = len(splitting_tokenizer())
    splitting_tokenizer().save_pretrained(folder)
    server = Server(url="http://localhost:8000/v1", model="big", top_k=top_k)
    run = run_of(models, teachers={"t": Teacher(model=str(folder), server=server, loss=HybridKL())})
    plan = MemoryPlan.from_run(run)
    of_teacher = {term for moment in plan.moments for term in moment.terms if term.startswith("teacher t")}
    assert {term.removeprefix("teacher t: ") for term in of_teacher} == {"W and loss tables", "served rows"}
    num_rows = run.batch_size * run.sequence_length
    assert plan.peak.terms["teacher t: served rows"] == num_rows * (row_bytes or 4 * num_tokens + 4)
    assert f"teacher t {folder}: served by http://localhost:8000/v1 as big, k = {top_k}" in table(plan, 1, [], None)


def test_offloaded_weights_are_on_the_gpu_only_during_their_own_pass(models: Path) -> None:
    run = run_of(models)
    run.teachers["t"].cpu_offload = True
    weights = [moment.name for moment in MemoryPlan.from_run(run).moments if "teacher t: weights" in moment.terms]
    assert weights == ["forward pass of teacher t"]


@pytest.mark.parametrize(("quantization", "share"), [("8bit", 1 / 2), ("4bit", 1 / 4)])
def test_quantization_shrinks_linear_layers_but_not_the_head(models: Path, quantization: str, share: float) -> None:
    teacher = Teacher(model=str(models / "teacher"), loss=TokenKL(), dtype="bfloat16")
    whole = MemoryPlan.from_run(run_of(models, teachers={"t": teacher}))
    teacher = replace(teacher, quantization=quantization)
    small = MemoryPlan.from_run(run_of(models, teachers={"t": teacher}))
    linear = sum(
        layer.weight.nbytes
        for name, layer in whole.teachers["t"].model.named_modules()
        if isinstance(layer, nn.Linear) and name != "lm_head"
    )
    saved = whole.peak.terms["teacher t: weights"] - small.peak.terms["teacher t: weights"]
    assert saved == pytest.approx(linear * (1 - share), rel=0.15)


def test_ddp_stores_gradients_twice_unless_they_are_views(models: Path) -> None:
    plans = {spread: MemoryPlan.from_run(run_of(models, spread=spread, num_gpus=2)) for spread in ("views", "buckets")}
    term = "student: gradients in DDP's buckets"
    assert plans["buckets"].peak.terms[term] == plans["buckets"].peak.terms["student: gradients"]
    assert term not in plans["views"].peak.terms
