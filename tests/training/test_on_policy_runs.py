"""Runs whose student writes: however steps are cut, on several processes, resumed, and mixed with steps on the data."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from accumulated_runs import Cut, parameters
from on_policy_runs import NUM_WINDOWS, Recorder, fit, module_of, write_models_and_texts
from resumed_runs import Interrupting
from started_helpers import run_helper
from torch import Tensor

from xtoken_pl import MultiTeacherDistillModule
from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks import DynamicLossScaling

Run = tuple[MultiTeacherDistillModule, Recorder]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("on_policy")
    write_models_and_texts(folder)
    return folder


def run(folder: Path, cut: Cut, *callbacks: pl.Callback, share: float = 1.0, **options: Any) -> Run:
    module = module_of(folder, student=options.pop("student", "student"), share=share)
    return module, fit(folder, cut, *callbacks, module=module, **options)


@pytest.fixture(scope="module")
def unsplit(folder: Path) -> Callable[[], Run]:
    """Two epochs of steps that are a batch each, computed when they are asked for."""
    return cache(lambda: run(folder, (NUM_WINDOWS, 1)))


@pytest.mark.parametrize(
    "cut", [(16, 2), *(pytest.param(cut, marks=pytest.mark.slow) for cut in ((4, 8), (1, 32)))], ids=str
)
def test_texts_losses_and_parameters_do_not_depend_on_the_cut(folder: Path, unsplit: Any, cut: Cut) -> None:
    whole, expected = unsplit()
    split, found = run(folder, cut)
    assert split.global_step == whole.global_step == len(expected.texts) == 8
    assert len({len(rollout.ids) for _, texts in expected.texts for rollout in texts}) > 3
    assert len({tuple(rollout.ids for rollout in texts) for _, texts in expected.texts}) == 8
    assert found.texts == expected.texts
    torch.testing.assert_close(found.steps, expected.steps, rtol=0, atol=1e-10, equal_nan=True)
    torch.testing.assert_close(parameters(split), parameters(whole), rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_write_and_learn_what_one_does(folder: Path, unsplit: Any, strategy: str) -> None:
    """In the last step of an epoch one of them has no prompt."""
    run_helper("on_policy_runs", strategy, folder, timeout=240)
    whole, expected = unsplit()
    found = torch.load(folder / f"{strategy}.pt", weights_only=False)
    for (step, texts), *of_processes in zip(expected.texts, *found["texts"], strict=True):
        assert [number for number, _ in of_processes] == [step, step]
        assert [own for _, own in of_processes] == [texts[0::2], texts[1::2]]
    assert [len(texts) for _, texts in found["texts"][1]] == [16, 16, 16, 0] * 2
    longest = [[max((len(text.ids) for text in texts), default=0) for _, texts in own] for own in found["texts"]]
    assert sum(one != other for one, other in zip(*longest, strict=True)) > 2  # they stop at different lengths
    torch.testing.assert_close(found["steps"], expected.steps, rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(found["parameters"], parameters(whole), rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_run_that_is_resumed_within_a_step_writes_and_learns_what_it_would_have(
    folder: Path, tmp_path: Path, share: float
) -> None:
    options: dict[str, Any] = {"student": "with_dropout", "share": share, "limit_train_batches": 6, "max_steps": 4}
    scaling = [DynamicLossScaling()] * (share < 1)
    interrupting = Interrupting(tmp_path)
    whole, expected = run(folder, (2, 4), *scaling, interrupting, **options)
    for place, num_steps in ((1, 0), (4, 1), (8, 2), (10, 3)):
        resumed, found = run(folder, (2, 4), *scaling, ckpt_path=interrupting.saved[place], **options)
        assert found.texts == [written for written in expected.texts if written[0] >= num_steps]
        torch.testing.assert_close(found.steps, expected.steps[num_steps:], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(parameters(resumed), parameters(whole), rtol=0, atol=0)


class Twin(pl.Callback):
    """Gives a module without rollouts the weights and the batches of the steps on the data, and those alone."""

    def __init__(self, module: MultiTeacherDistillModule) -> None:
        self.module, self.scaling = module, DynamicLossScaling()
        self.num_steps = 0
        self.expected: dict[str, Any] = {}
        self.gradients: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.module.setup("fit")
        self.module.configure_model()
        self.module.train()
        self.scaling.setup(trainer, self.module, "fit")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: DistillBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, MultiTeacherDistillModule)
        self.expected = {}
        if pl_module.is_on_policy_step:
            return
        if batch.step_counts.is_first:
            self.module.load_state_dict(pl_module.state_dict())
            self.module.zero_grad()
        with torch.random.fork_rng():
            self.expected = dict(self.module.training_step(batch, batch_idx))  # type: ignore[arg-type]
            self.expected.pop("loss").backward()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: DistillBatch, batch_idx: int
    ) -> None:
        assert outputs["is_rollout"] is not bool(self.expected)
        if self.expected:
            found = {key: value for key, value in outputs.items() if key != "loss"}
            torch.testing.assert_close(found, self.expected, rtol=0, atol=0)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if self.expected:
            ours, theirs = ([p.grad for p in module.student.parameters()] for module in (pl_module, self.module))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
            self.num_steps += 1


def test_steps_on_the_data_are_what_they_are_without_rollouts(folder: Path) -> None:
    """The estimates of the dynamic scaling within a step come from the step on the data before, too."""
    twin = Twin(module_of(folder, student="with_dropout", share=0))
    options: dict[str, Any] = {"share": 0.5, "student": "with_dropout", "max_epochs": 1}
    _, found = run(folder, (4, 2), twin, DynamicLossScaling(), **options)
    assert len(found.steps) == 13
    assert len(found.texts) in (6, 7)
    assert twin.num_steps == 13 - len(found.texts)
    assert all(("student_nats_per_byte" in step) == step["is_rollout"] for step in found.steps)


class Batches(pl.Callback):
    """Notes the student's sequences in the batches of the data."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: DistillBatch, batch_idx: int) -> None:
        self.seen.append(batch.student.input_ids)


def test_a_share_below_one_reads_the_same_data_in_the_same_order(folder: Path) -> None:
    mixed, plain = Batches(), Batches()
    run(folder, (8, 1), mixed, share=0.5, max_epochs=1)
    run(folder, (8, 1), plain, share=0, max_epochs=1)
    torch.testing.assert_close(mixed.seen, plain.seen, rtol=0, atol=0)
