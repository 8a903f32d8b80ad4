"""Access to parts of Lightning that are not public, one function each; nothing else in the package touches them.

They hold for lightning 2.6, to which pyproject.toml bounds it. tests/utilities/test_lightning_internals.py shows what
breaks when a later version changes them. Two methods of LightningCLI that are not public, either, are overridden in
xtoken_pl/cli/fit.py and parts_cli.py, since there is no other way to change what they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.strategies import ModelParallelStrategy


def attached_trainer(module: pl.LightningModule) -> pl.Trainer | None:
    """Returns the trainer that a module is attached to, or None.

    The public attribute ``trainer`` raises if there is none, but the module can be used without a trainer.
    """
    return module._trainer


def is_accumulating(trainer: pl.Trainer) -> bool:
    """Whether gradients of the current batch are accumulated, so that no optimizer step follows it.

    Lightning decides this by counters that have no public attribute.
    """
    return trainer.fit_loop._should_accumulate()


def forget_logged(trainer: pl.Trainer, prefixes: tuple[str, ...]) -> None:
    """Keeps Lightning from writing values of ``on_train_batch_end`` once more before they are logged again.

    At each logging step it writes the last value of every tag of the epoch, however old it is. The values stay in
    ``trainer.callback_metrics`` and on the progress bar.

    Args:
        trainer: The trainer, in training.
        prefixes: Beginnings of the tags.
    """
    for value in (trainer._results or {}).values():
        if value.meta.fx == "on_train_batch_end" and value.meta.name.startswith(prefixes):
            value.reset()


def num_batches_begun(trainer: pl.Trainer) -> int:
    """Number of batches of the current epoch that were begun, restored from the checkpoint when training resumes.

    ``trainer.global_step`` counts optimizer steps over all epochs; only the loop's progress counts batches.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def step_sizes(trainer: pl.Trainer) -> Iterator[int]:
    """Yields the number of batches of each optimizer step, from the next batch to the end of the epoch.

    Lightning steps at multiples of ``accumulate_grad_batches`` and at the end of an epoch; its counters say where that
    is. To be used when training is about to fetch a batch, when the number of batches of the epoch is known.
    """
    end, size = trainer.num_training_batches, trainer.accumulate_grad_batches
    begun = num_batches_begun(trainer)
    begun = begun if begun < end else 0  # the epoch before ended there
    while begun < end:
        num = int(min(size - begun % size, end - begun))
        yield num
        begun += num


def num_batches_in_open_step(trainer: pl.Trainer) -> int:
    """Number of batches whose gradients wait for the rest of their optimizer step.

    Like :func:`num_batches_begun`, only the loop's progress counts it.
    """
    progress = cast(Any, trainer).fit_loop.epoch_loop.batch_progress
    num_done, is_last = progress.current.processed, progress.is_last_batch
    ended = num_done >= trainer.num_training_batches or (is_last and progress.current.ready == num_done)
    return 0 if ended else num_done % trainer.accumulate_grad_batches


def num_batches_of_steps(trainer: pl.Trainer) -> int:
    """Number of batches of all optimizer steps since training began, over all epochs and resumed runs.

    Like :func:`num_batches_begun`, only the loop's progress counts it.
    """
    total = cast(Any, trainer).fit_loop.epoch_loop.batch_progress.total.processed
    return total - num_batches_in_open_step(trainer)


def rewind_open_step(checkpoint: dict[str, Any], num_batches: int) -> None:
    """Sets the progress in a checkpoint back to the beginning of the optimizer step that it was saved in.

    A checkpoint holds no gradients, so that a run has to resume with the first batch of the step. The progress is
    written as Lightning writes it in ``on_train_batch_end`` of the batch before; there is no public way to set it.

    Args:
        checkpoint: Checkpoint that Lightning has made, to be changed.
        num_batches: Number of batches of the step that were trained on.
    """
    loop = checkpoint["loops"]["fit_loop"]
    batches = loop["epoch_loop.batch_progress"]
    for counts in (batches["total"], batches["current"]):
        num_done = counts["processed"] - num_batches
        counts.update(ready=num_done, started=num_done, processed=num_done, completed=num_done - 1)
    batches["is_last_batch"] = False
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"] - 1
    for counts in loop["epoch_progress"].values():  # a run that stops within a step has ended its epoch
        counts["processed"] = counts["completed"] = counts["started"] - 1


def discard_train_loader(trainer: pl.Trainer) -> None:
    """Makes Lightning ask for the training loader again before it trains.

    A sharded run makes its loaders before it reads a checkpoint, to count the steps; the public way to make them anew
    (``reload_dataloaders_every_n_epochs``) does so at the ends of epochs only.
    """
    trainer.fit_loop._combined_loader = None


def settle_epoch(checkpoint: dict[str, Any]) -> None:
    """Corrects the progress in a checkpoint that was saved in ``on_train_epoch_end`` or ``on_train_end``.

    Lightning counts an epoch as completed only after the hooks of its end. A run that is limited by ``max_steps`` would
    then go through that epoch once more, without a batch: hooks would run twice, it would count as two, and with
    ``max_epochs`` set as well training would end early. On the other hand it counts an epoch as completed that training
    has left before its last batch, because of ``max_steps`` or an early stop: the rest of its data would be skipped.
    There is no public way to set the progress.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    epochs, batches = loop.get("epoch_progress"), loop.get("epoch_loop.batch_progress")
    if epochs is None or batches is None:
        return
    now = epochs["current"]
    is_at_end = now["ready"] == now["started"] == now["processed"] >= now["completed"] and batches["current"]["ready"]
    if not is_at_end:
        return
    if batches["is_last_batch"]:
        for counts in epochs.values():
            counts["completed"] = counts["processed"]
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False
        return
    for counts in epochs.values():  # as in a checkpoint that is saved in on_train_batch_end
        counts["processed"] = counts["completed"] = counts["started"] - 1
    for counts in (batches["total"], batches["current"]):
        counts["completed"] -= 1
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def begin_next_epoch(trainer: pl.Trainer) -> None:
    """Makes Lightning begin an epoch where it resumes after the last batch of the one before; for ``on_train_start``.

    From a checkpoint that was saved in ``on_train_batch_end`` it closes the finished epoch, but then takes the next
    one for one that had begun: ``on_train_epoch_start`` is not called, and its count of epochs is one too low in later
    checkpoints, so that a run that resumes from one of these starts the epoch again from its first batch.
    """
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress.total
    if loop.restarted_mid_epoch and epochs.processed == epochs.started:
        loop.reset_restart_stage()


def has_checkpoint_io(strategy: Any) -> bool:
    """Whether a strategy (or its name) was given a CheckpointIO of its own.

    The public attribute ``checkpoint_io`` makes a default one where there is none.
    """
    return getattr(strategy, "_checkpoint_io", None) is not None


def parallel_sizes(strategy: ModelParallelStrategy) -> tuple[int, int]:
    """Returns how many processes are data parallel, and how many tensor parallel; ``auto`` as Lightning resolves it.

    There is no public attribute before the processes are connected.
    """
    data, tensor = strategy._data_parallel_size, strategy._tensor_parallel_size
    return strategy.num_nodes if data == "auto" else data, strategy.num_processes if tensor == "auto" else tensor


def set_parallel_sizes(strategy: ModelParallelStrategy, data: int, tensor: int) -> None:
    """Sets the sizes of a strategy that was created before the number of processes was known."""
    strategy._data_parallel_size, strategy._tensor_parallel_size = data, tensor


def sets_learning_rate(finder: LearningRateFinder) -> bool:
    """Whether a learning rate finder applies what it finds; the option has no public attribute."""
    return finder._update_attr
