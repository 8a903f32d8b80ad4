"""Training from a server gives the numbers of training with the teacher in the process, whatever the server does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cached_teachers import data_of, module_of
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from stand_in_server import StandInServer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from xtoken_pl import (
    GOLD,
    ULD,
    BytePrefixKL,
    ConfidenceWeighting,
    HybridKL,
    OptimizerRecipe,
    ProjectionKL,
    Rollouts,
    Server,
    SpanLoss,
    Teacher,
    TokenKL,
    Weighting,
)
from xtoken_pl.teachers.served import client

LOSSES: dict[str, Callable[[], SpanLoss]] = {
    "projection": ProjectionKL,
    "projection_mean": lambda: ProjectionKL(merge="mean"),
    "hybrid": HybridKL,
    "gold": GOLD,
    "gold_mean": lambda: GOLD(merge="mean"),
    "uld": ULD,
    "byte_prefix": BytePrefixKL,
    "byte_prefix_reverse": lambda: BytePrefixKL(divergence="reverse"),
    "byte_prefix_jensen_shannon": lambda: BytePrefixKL(divergence="jensen_shannon"),
}
#: Error of gradients by losses that compare probabilities by rank: where two are as large but for rounding, either may
#: come first. Without such a pair the error is 2e-7, as of the other losses.
RANKED = 1e-3


class Recorder(pl.Callback):
    """Keeps the numbers and the gradient of every step."""

    def __init__(self, after_step: Callable[[int], object] = lambda step: None) -> None:
        self.numbers: list[dict[str, float]] = []
        self.gradients: list[Tensor] = []
        self.after_step = after_step

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        flat = {key: float(value) for key, value in outputs.items() if not isinstance(value, dict)}
        flat |= {f"kd/{name}": float(value) for name, value in outputs["teacher_kd"].items()}
        flat |= {f"alpha/{name}": float(value) for name, value in outputs["alpha"].items()}
        self.numbers.append(flat)
        self.after_step(trainer.global_step)

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        gradients = [weight.grad.flatten() for weight in module.student.parameters() if weight.grad is not None]
        self.gradients.append(torch.cat(gradients).clone())


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and texts of short windows."""
    root = tmp_path_factory.mktemp("served_training")
    write_model(root / "student", packing_tokenizer(), seed=1)
    (root / "train.txt").write_text(TEXTS[1][:3000] + " 12 345 6789" * 20)
    (root / "val.txt").write_text(TEXTS[2][:1000])
    return root


def fit(
    root: Path,
    teachers: dict[str, Teacher],
    weighting: Weighting | None = None,
    after_step: Callable[[int], object] = lambda step: None,
    **options: Any,
) -> tuple[Recorder, dict[str, float]]:
    """Trains ten steps, and validates."""
    pl.seed_everything(0)
    recorder = Recorder(after_step)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=10, limit_val_batches=1, num_sanity_val_steps=0, callbacks=[recorder],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    optimizer = OptimizerRecipe(learning_rate=1e-3)
    module = module_of(root, teachers, weighting=weighting, optimizer=optimizer, **options)
    trainer.fit(module, data_of(root, sequence_length=16, batch_size=2))
    trainer.validate(module, data_of(root, sequence_length=16, batch_size=2), verbose=False)
    return recorder, {key: float(value) for key, value in trainer.callback_metrics.items()}


def served(folder: str, server: StandInServer, loss: SpanLoss, **options: Any) -> Teacher:
    return Teacher(model=folder, loss=loss, server=Server(url=server.url, model=server.name, **options))


def check_same(
    found: tuple[Recorder, dict[str, float]], expected: tuple[Recorder, dict[str, float]], gradient_error: float = 1e-5
) -> None:
    (ours, validated), (theirs, theirs_validated) = found, expected
    assert theirs.numbers[-1]["ce"] < theirs.numbers[0]["ce"] - 0.05  # it learned
    assert len(ours.gradients) == len(theirs.gradients) == 10
    for mine, other in zip(ours.numbers, theirs.numbers, strict=True):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-7)
    for gradient, other_gradient in zip(ours.gradients, theirs.gradients, strict=True):
        assert float((gradient - other_gradient).norm() / other_gradient.norm()) < gradient_error
    assert validated == pytest.approx(theirs_validated, rel=1e-5)


def test_every_loss_is_that_of_the_teacher_itself(root: Path, folder: str, server: StandInServer) -> None:
    same = write_model(root / "same", packing_tokenizer(), seed=3)
    live = {name: Teacher(model=folder, loss=loss()) for name, loss in LOSSES.items()}
    behind = {name: served(folder, server, loss(), top_k="all") for name, loss in LOSSES.items()}
    live["token"] = Teacher(model=same, loss=TokenKL())
    with StandInServer(AutoModelForCausalLM.from_pretrained(same).eval(), packing_tokenizer()) as own_tokenizer:
        behind["token"] = served(same, own_tokenizer, TokenKL(), top_k="all")
        check_same(fit(root, behind), fit(root, live), RANKED)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_of_each_loss_is_that_of_the_teacher_itself(
    root: Path, folder: str, server: StandInServer, loss: str
) -> None:
    expected = fit(root, {"t": Teacher(model=folder, loss=LOSSES[loss]())})
    found = fit(root, {"t": served(folder, server, LOSSES[loss](), top_k="all")})
    check_same(found, expected, RANKED if loss in ("hybrid", "gold", "gold_mean", "uld") else 1e-5)


@pytest.mark.parametrize(
    "measure",
    ["entropy", *(pytest.param(measure, marks=pytest.mark.slow) for measure in ("cross_entropy", "max_probability"))],
)
def test_confidences_are_those_of_the_teachers_themselves(
    root: Path, folder: str, server: StandInServer, model: PreTrainedModel, other_model: PreTrainedModel, measure: Any
) -> None:
    weighting = ConfidenceWeighting(measure, scope="sequence")
    with StandInServer(other_model, splitting_tokenizer()) as other:
        servers = {"one": (folder, server), "two": (other_model.name_or_path, other)}
        live = {name: Teacher(model=path, loss=ProjectionKL()) for name, (path, _) in servers.items()}
        behind = {name: served(path, own, ProjectionKL(), top_k="all") for name, (path, own) in servers.items()}
        check_same(fit(root, behind, weighting), fit(root, live, weighting))


def test_k_tokens_of_a_server_are_those_of_the_teacher_itself(root: Path) -> None:
    whole = write_model(root / "whole", splitting_tokenizer())  # a token for each row of its head
    expected = fit(root, {"t": Teacher(model=whole, loss=BytePrefixKL(teacher_top_k=8))})
    with StandInServer(AutoModelForCausalLM.from_pretrained(whole).eval(), splitting_tokenizer()) as server:
        check_same(fit(root, {"t": served(whole, server, BytePrefixKL(), top_k=8)}), expected)


def test_a_server_judges_what_the_student_writes(root: Path, folder: str, server: StandInServer) -> None:
    rollouts = Rollouts(share=0.5, seed=1, prompt_bytes=12, max_new_tokens=6)
    live = {"t": Teacher(model=folder, loss=BytePrefixKL())}
    expected = fit(root, live, rollouts=rollouts)
    assert {step["is_rollout"] for step in expected[0].numbers} == {0.0, 1.0}
    found = fit(root, {"t": served(folder, server, BytePrefixKL(), top_k="all")}, rollouts=rollouts)
    for ours, theirs in zip(found[0].numbers, expected[0].numbers, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)


def test_no_training_step_asks_for_rows_that_it_does_not_read(root: Path, folder: str, server: StandInServer) -> None:
    asked: list[int] = []
    fit(
        root,
        {"t": served(folder, server, BytePrefixKL(), top_k=8)},
        after_step=lambda step: asked.append(len(server.prompts)),
        kd_weight=0.0,
    )
    assert asked[0] == asked[4]  # before validation
    assert asked[0] < len(server.prompts)


def test_ten_failures_of_a_server_change_no_number(
    root: Path, folder: str, server: StandInServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_BACK_OFF", lambda state: 0.0)
    teachers = {"t": served(folder, server, BytePrefixKL(), top_k=8)}
    expected, _ = fit(root, teachers)
    failures: list[Any] = ["reset", "cut", "error", "text", "short", "nan", "few", "no_mass", "too_much", "cut"]

    def fail(step: int) -> None:
        server.failures.append(failures[step - 1])

    found, _ = fit(root, teachers, after_step=fail)
    assert not server.failures
    assert found.numbers == expected.numbers
