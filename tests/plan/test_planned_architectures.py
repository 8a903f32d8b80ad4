"""The replay of every architecture allocates what its real passes do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, BALANCED, MULTIMODAL, write_architecture, write_multimodal
from measured_steps import measured_step, planned_step
from planned import measured_passes
from small_models import packing_tokenizer

from xtoken_pl import Student, Teacher, TokenKL
from xtoken_pl.models.loading import load_causal_lm
from xtoken_pl.plan.ledger import Held
from xtoken_pl.plan.replay import Footprint, replay
from xtoken_pl.plan.run import Run
from xtoken_pl.plan.skeleton import Skeleton

_BATCH_SIZE, _LENGTH = 8, 64
#: The others are slow in sum.
_FAST = {"qwen3_moe"}
EXPERTS = [name for name, settings in ARCHITECTURES.items() if "num_experts" in settings and name != "qwen3_moe"]
#: (activation checkpointing, autocast) of the student's passes.
_SETTINGS = [(False, False), (False, True), (True, False), (True, True)]


def planned_passes(source: Student, **options: Any) -> Footprint:
    return replay(Skeleton.from_source(source, role="student"), _BATCH_SIZE, _LENGTH, **options)


def most(footprint: Footprint) -> int:
    return max(footprint.forward.total, footprint.backward.total)


def check_passes(source: Student) -> None:
    """As a student, with and without activation checkpointing and autocast, and as a teacher: within 2%."""
    shape = _BATCH_SIZE, _LENGTH
    for checkpointing, autocast in _SETTINGS:
        model: Any = load_causal_lm(source, role="student").train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        real = measured_passes(model, *shape, autocast=autocast, without_workspaces=autocast)
        dtype = torch.bfloat16 if autocast else None
        planned = planned_passes(source, autocast=dtype, trains=True, activation_checkpointing=checkpointing)
        assert most(planned) == pytest.approx(real.peak, rel=0.02), (checkpointing, autocast)
        if not checkpointing:
            assert planned.until_backward.total == pytest.approx(real.saved, rel=0.04), autocast
    for autocast in (False, True):
        teacher = load_causal_lm(source, role="student").requires_grad_(False)
        real = measured_passes(teacher, *shape, autocast=autocast, trains=False, without_workspaces=autocast)
        planned = planned_passes(source, autocast=torch.bfloat16 if autocast else None, trains=False)
        assert planned.forward.total == pytest.approx(real.peak, rel=0.02), autocast
        assert planned.backward == Held(0, 0)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _FAST else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_replayed_passes_of_every_architecture_allocate_what_real_ones_do(tmp_path: Path, name: str) -> None:
    check_passes(Student(model=write_architecture(tmp_path, name, packing_tokenizer(), seed=1)))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _FAST else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_planned_peak_of_every_architecture_is_an_upper_bound_of_a_real_step(tmp_path: Path, name: str) -> None:
    """A teacher of the same architecture, and the routers' loss; for such small models, bounds are a large share."""
    model = write_architecture(tmp_path, name, packing_tokenizer(), seed=1)
    student = Student(model=model, router_aux_loss_coef=0.1 if name in BALANCED else 0.0)
    run = Run(student, {"t": Teacher(model=model, loss=TokenKL())}, _BATCH_SIZE, _LENGTH, logits_memory=500_000)
    measured, planned = measured_step(run), planned_step(run)
    assert measured <= 1.005 * planned  # token ids and masks are not planned
    assert planned <= 1.5 * measured


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "gemma3" else pytest.mark.slow) for name in MULTIMODAL]
)
def test_of_a_multimodal_checkpoint_the_text_model_alone_is_planned(tmp_path: Path, name: str) -> None:
    whole = write_multimodal(tmp_path, name, packing_tokenizer())
    source = Student(model=str(tmp_path))
    planned = Skeleton.from_source(source, role="student")
    loaded = load_causal_lm(source, role="student")
    assert planned.num_parameters == sum(weight.numel() for weight in loaded.parameters())
    assert planned.num_parameters < sum(weight.numel() for weight in whole.parameters())
    check_passes(source)


@pytest.mark.parametrize("name", ["qwen3_moe", *(pytest.param(name, marks=pytest.mark.slow) for name in EXPERTS)])
def test_memory_of_a_mixture_does_not_depend_on_how_many_tokens_each_expert_gets(tmp_path: Path, name: str) -> None:
    """Same sizes for one token over and over, and for random tokens, of which every expert gets some."""
    source = Student(model=write_architecture(tmp_path, name, packing_tokenizer(), seed=1))
    model = load_causal_lm(source, role="student").train()
    spread = torch.randint(300, (_BATCH_SIZE, _LENGTH), generator=torch.Generator().manual_seed(0))
    peaks = [
        measured_passes(model, _BATCH_SIZE, _LENGTH, autocast=False, input_ids=ids).peak
        for ids in (torch.zeros_like(spread), spread)
    ]
    assert peaks[0] == pytest.approx(peaks[1], rel=1e-3)
