"""The parts of Lightning that are not public do what the package uses them for; a later version may change them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from xtoken_pl.utilities.lightning_internals import (
    attached_trainer,
    begin_next_epoch,
    discard_train_loader,
    has_checkpoint_io,
    is_accumulating,
    num_batches_begun,
    num_batches_in_open_step,
    num_batches_of_steps,
    parallel_sizes,
    rewind_open_step,
    set_parallel_sizes,
    sets_learning_rate,
    settle_epoch,
    step_sizes,
)


class Line(pl.LightningModule):
    """One weight, trained on five numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.num_loaders = 0
        self.num_epochs_ended = 0

    def train_dataloader(self) -> DataLoader[Any]:
        self.num_loaders += 1
        return DataLoader(range(5))  # type: ignore[arg-type]

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.weight * batch.sum()

    def on_train_epoch_end(self) -> None:
        self.num_epochs_ended += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class AfterBatch(pl.Callback):
    """Notes something of the trainer after every batch."""

    def __init__(self, what: Callable[[pl.Trainer], Any]) -> None:
        self.what = what
        self.noted: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.noted.append(self.what(trainer))


def fit(module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    trainer = trainer_of(callbacks=list(callbacks), **options)
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def trainer_of(**options: Any) -> pl.Trainer:
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(accelerator="cpu", **dict.fromkeys(quiet, False), **options)


def test_a_module_without_a_trainer_has_none() -> None:
    module = Line()
    assert attached_trainer(module) is None
    trainer = fit(module, max_steps=1)
    assert attached_trainer(module) is trainer


def test_gradients_are_accumulated_except_at_an_optimizer_step_and_at_the_end_of_an_epoch() -> None:
    seen = AfterBatch(is_accumulating)
    fit(Line(), seen, max_epochs=1, accumulate_grad_batches=2)
    assert seen.noted == [True, False, True, False, False]


def test_batches_are_counted_within_an_epoch_and_over_all_of_them() -> None:
    seen = AfterBatch(lambda trainer: (num_batches_begun(trainer), num_batches_of_steps(trainer)))
    fit(Line(), seen, max_epochs=2)
    assert seen.noted == [(number % 5 + 1, number + 1) for number in range(10)]


def test_batches_of_an_open_step_are_not_counted() -> None:
    seen = AfterBatch(lambda trainer: (num_batches_in_open_step(trainer), num_batches_of_steps(trainer)))
    fit(Line(), seen, max_epochs=2, accumulate_grad_batches=3)
    epoch = [(1, 0), (2, 0), (0, 3), (1, 3), (0, 5)]
    assert seen.noted == epoch + [(num_open, 5 + num_done) for num_open, num_done in epoch]


def test_steps_have_the_batches_of_lightnings_optimizer_steps() -> None:
    seen = AfterBatch(lambda trainer: (tuple(step_sizes(trainer)), is_accumulating(trainer)))
    fit(Line(), seen, max_epochs=1, accumulate_grad_batches=2)
    # After the last batch the next epoch is ahead.
    assert seen.noted == [((1, 2, 1), True), ((2, 1), False), ((1, 1), True), ((1,), False), ((2, 2, 1), False)]


@pytest.mark.parametrize("rewind", [False, True])
def test_a_run_resumes_with_the_first_batch_of_an_open_step(tmp_path: Path, rewind: bool) -> None:
    class Rewinding(Line):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            if rewind:
                rewind_open_step(checkpoint, num_batches_in_open_step(self.trainer))

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if num_batches_in_open_step(trainer) == 2:
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    fit(Rewinding(), Save(), max_epochs=2, accumulate_grad_batches=4)
    seen = AfterBatch(num_batches_begun)
    fit(Line(), seen, max_epochs=2, accumulate_grad_batches=4, ckpt_path=tmp_path / "2.ckpt")
    # Without it the step would lack two batches.
    assert seen.noted == ([1, 2, 3, 4, 5] if rewind else [3, 4, 5])


def test_batches_are_counted_on_after_a_checkpoint(tmp_path: Path) -> None:
    trainer = fit(Line(), max_steps=3)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    seen = AfterBatch(lambda trainer: (num_batches_begun(trainer), num_batches_of_steps(trainer)))
    fit(Line(), seen, max_steps=5, ckpt_path=tmp_path / "a.ckpt")
    assert seen.noted == [(4, 4), (5, 5)]


@pytest.mark.parametrize("discard", [False, True])
def test_a_discarded_loader_is_asked_for_again(discard: bool) -> None:
    class CountSteps(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            assert trainer.estimated_stepping_batches == 5  # makes the loader
            if discard:
                discard_train_loader(trainer)

    module = Line()
    fit(module, CountSteps(), max_epochs=1)
    assert module.num_loaders == (2 if discard else 1)


@pytest.mark.parametrize("close", [False, True])
def test_an_epoch_is_not_run_again_from_a_checkpoint_that_was_saved_at_its_end(tmp_path: Path, close: bool) -> None:
    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    class Resumed(Line):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            if close:
                settle_epoch(checkpoint)

    fit(Line(), Save(), max_steps=5)
    module = Resumed()
    fit(module, max_steps=10, ckpt_path=tmp_path / "0.ckpt")
    # The second case is what Lightning does by itself: once this fails, settle_epoch is not needed any more.
    assert module.num_epochs_ended == (1 if close else 2)


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_end"])
@pytest.mark.parametrize("num_steps", [3, 5, 7])
@pytest.mark.parametrize("settle", [False, True])
def test_a_run_that_was_stopped_is_continued_with_the_next_batch(
    tmp_path: Path, num_steps: int, hook: str, settle: bool
) -> None:
    class Places(Line):
        def __init__(self) -> None:
            super().__init__()
            self.places: list[tuple[int, int]] = []

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.places.append((self.current_epoch, batch_idx))
            return super().training_step(batch, batch_idx)

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            if settle:
                settle_epoch(checkpoint)

    save = pl.Callback()
    path = tmp_path / "stopped.ckpt"
    setattr(save, hook, lambda trainer, pl_module: trainer.save_checkpoint(path))
    whole, resumed = Places(), Places()
    fit(whole, max_steps=12)
    fit(Places(), save, max_steps=num_steps)
    trainer = fit(resumed, max_steps=12, ckpt_path=path)
    # By itself Lightning leaves out the rest of the epoch, or all of the next one, unless it is within an epoch's end.
    is_right = hook == "on_train_epoch_end" and num_steps % 5 != 0
    assert (resumed.places == whole.places[num_steps:]) == (settle or is_right)
    assert trainer.global_step == 12


@pytest.mark.parametrize("begin", [False, True])
def test_a_run_that_resumed_after_the_last_batch_of_an_epoch_can_be_resumed_again(tmp_path: Path, begin: bool) -> None:
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{num_batches_of_steps(trainer)}.ckpt")

    class Resumed(Line):
        def on_train_start(self) -> None:
            if begin:
                begin_next_epoch(self.trainer)

    fit(Resumed(), Save(), max_epochs=2)
    fit(Resumed(), Save(), max_epochs=2, ckpt_path=tmp_path / "5.ckpt")
    again = fit(Resumed(), max_epochs=2, ckpt_path=tmp_path / "7.ckpt")
    # The second case is what Lightning does by itself: once this fails, begin_next_epoch is not needed any more.
    assert num_batches_of_steps(again) == (10 if begin else 12)


def test_a_checkpoint_that_was_saved_within_an_epoch_is_left_as_it_is() -> None:
    within = {"ready": 2, "started": 2, "processed": 1, "completed": 1}
    loop = {
        "epoch_progress": {"total": dict(within), "current": dict(within)},
        "epoch_loop.batch_progress": {"current": {"ready": 3, "completed": 3}, "is_last_batch": False},
    }
    settle_epoch({"loops": {"fit_loop": loop}})
    assert loop["epoch_progress"] == {"total": within, "current": within}
    assert loop["epoch_loop.batch_progress"]["current"] == {"ready": 3, "completed": 3}
    settle_epoch({})  # weights alone


def test_a_strategy_has_a_checkpoint_io_only_if_it_was_given_one() -> None:
    assert not has_checkpoint_io("ddp")
    assert not has_checkpoint_io(SingleDeviceStrategy())
    assert has_checkpoint_io(SingleDeviceStrategy(checkpoint_io=TorchCheckpointIO()))


def test_the_state_of_a_stateful_loader_is_plain_data() -> None:
    """Checkpoints store it and are read with ``weights_only``."""
    loader: StatefulDataLoader[Any] = StatefulDataLoader(range(6), batch_size=2)  # type: ignore[arg-type]
    next(iter(loader))

    def is_plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(is_plain(part) for part in value.values())
        if isinstance(value, list | tuple):
            return all(map(is_plain, value))
        return value is None or isinstance(value, str | int | float | torch.Tensor)

    assert is_plain(loader.state_dict())


def test_sizes_of_a_sharding_strategy_are_resolved_and_set_before_its_processes_start() -> None:
    strategy = trainer_of(devices=2, strategy=ModelParallelStrategy()).strategy
    assert isinstance(strategy, ModelParallelStrategy)
    assert parallel_sizes(strategy) == (1, 2)  # Lightning's defaults
    set_parallel_sizes(strategy, 2, 1)
    assert parallel_sizes(strategy) == (2, 1)


def test_a_learning_rate_finder_says_whether_it_applies_what_it_finds() -> None:
    assert sets_learning_rate(LearningRateFinder())
    assert not sets_learning_rate(LearningRateFinder(update_attr=False))
