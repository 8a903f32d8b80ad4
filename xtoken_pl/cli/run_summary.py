"""What ``fit`` says when it has ended: what was trained, from whom, and where the results are."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from xtoken_pl.data.validation import validates
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.run_folder import run_folder

_BITS_PER_BYTE = "val/bits_per_byte"


@dataclass(frozen=True)
class Validation:
    """Bits per byte of the validation texts at one step."""

    step: int
    bits_per_byte: float

    def __str__(self) -> str:
        return f"{self.bits_per_byte:.3f} at step {self.step:,}"


class RunSummary(pl.Callback):
    """Keeps what the summary of a run needs, and writes it.

    The validation before the first step is the one that Lightning makes as its sanity check, where that runs over all
    validation batches (``trainer.num_sanity_val_steps: -1``, the command line's default). The loggers get it as the
    metrics of step 0, so that curves begin where the run did; a run that goes on remembers it.

    Args:
        arguments: The command line of the run, behind ``python -m xtoken_pl``; for the command to go on.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self.arguments = list(arguments)
        self.before: Validation | None = None
        self.after: Validation | None = None
        self._began: tuple[float, int] = (time.monotonic(), 0)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.before is None else {"before": [self.before.step, self.before.bits_per_byte]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "before" in state_dict:
            self.before = Validation(*state_dict["before"])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {tag: float(value) for tag, value in trainer.callback_metrics.items() if tag.startswith("val/")}
        if _BITS_PER_BYTE not in metrics:
            return
        measured = Validation(trainer.global_step, metrics[_BITS_PER_BYTE])
        if not trainer.sanity_checking:
            self.after = measured
        elif trainer.num_sanity_val_batches == trainer.num_val_batches:
            self.before = measured
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = (time.monotonic(), trainer.global_step)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A run that is stopped by hand says how to go on."""
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            checkpoint = next((newest for _, newest in _checkpoints(trainer)), None)
            way_on = (
                "no checkpoint was written (ModelCheckpoint with save_last or every_n_train_steps writes some)"
                if checkpoint is None
                else f"the last checkpoint is {_short(checkpoint)}; to go on: {self.command_to_go_on(trainer)}"
            )
            print(f"\nstopped at step {trainer.global_step:,}; {way_on}")

    def text(self, trainer: pl.Trainer, module: MultiTeacherDistillModule) -> str:
        """The summary. Every process has to ask for it, since Lightning broadcasts the log folder."""
        began, first_step = self._began
        num_steps = trainer.global_step - first_step
        title = f"trained {num_steps:,} step{'s' * (num_steps != 1)} in {_duration(time.monotonic() - began)}"
        if first_step:
            title += f", from step {first_step:,} to step {trainer.global_step:,}"
        rows = [*_models(module), ("bits per byte", self._bits_per_byte(trainer)), *self._places(trainer)]
        width = max(len(label) for label, _ in rows)
        return "\n".join([title, *(f"  {label:<{width}}  {text}" for label, text in rows)])

    def _bits_per_byte(self, trainer: pl.Trainer) -> str:
        if not validates(trainer):
            return "not validated; set data.val.path"
        before = "not measured before the first step (trainer.num_sanity_val_steps: -1)"
        before = before if self.before is None else str(self.before)
        after = "not measured since: no validation was due (trainer.val_check_interval)"
        return f"{before}, {after if self.after is None else self.after}"

    def _places(self, trainer: pl.Trainer) -> Iterator[tuple[str, str]]:
        folder = run_folder(trainer)
        checkpoints = list(_checkpoints(trainer))
        for callback, newest in checkpoints:
            score = cast(Any, callback.best_model_score)
            if callback.monitor and score is not None:
                yield "best checkpoint", f"{_short(callback.best_model_path)} ({callback.monitor} {float(score):.3f})"
            yield "last checkpoint", _short(newest)
        for callback in cast(Any, trainer).callbacks:
            for what, place in getattr(callback, "written", {}).items():
                yield what, _short(place)
        watch = next((logger.save_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        yield "logs", _short(folder) + ("" if watch is None else f"; to watch: tensorboard --logdir {_short(watch)}")
        if checkpoints:
            yield "to go on", self.command_to_go_on(trainer)
        else:
            yield "to go on", "no checkpoint was written; start a run from the exported student"

    def command_to_go_on(self, trainer: pl.Trainer) -> str:
        """The run's command with ``--ckpt_path last``, and with twice the steps or epochs where these are used up."""
        arguments = ["python", "-m", "xtoken_pl", *_without(self.arguments, "--ckpt_path"), "--ckpt_path", "last"]
        if 0 <= trainer.max_steps <= trainer.global_step:
            arguments = _without(arguments, "--trainer.max_steps")
            arguments += ["--trainer.max_steps", str(2 * trainer.max_steps)]
        elif trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
            arguments = _without(arguments, "--trainer.max_epochs")
            arguments += ["--trainer.max_epochs", str(2 * trainer.max_epochs)]
        return shlex.join(arguments)


def _checkpoints(trainer: pl.Trainer) -> Iterator[tuple[ModelCheckpoint, str]]:
    """Every ModelCheckpoint that has written one, and where its newest is."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and (newest := callback.last_model_path or callback.best_model_path):
            yield callback, newest


def _models(module: MultiTeacherDistillModule) -> Iterator[tuple[str, str]]:
    source = module.student_source
    # transformers knows that quantized weights are packed.
    total, learned = module.student.num_parameters(), module.student.num_parameters(only_trainable=True)
    share = "" if learned == total else f", {learned / 1e6:,.1f} million of them learned"
    yield "student", f"{source.model} ({source.weights} weights), {total / 1e6:,.1f} million parameters{share}"
    for name, teacher in module.teachers.items():
        of = teacher.model if teacher.cache is None else f"{teacher.model}, from the cache {teacher.cache}"
        loss = type(module.losses[name]).__name__
        yield f"teacher {name}", f"{of}: {loss} ({module.loss_reasons[name]}), alpha {teacher.alpha:g}"
    if not module.teachers:
        yield "teachers", "none: cross-entropy alone"


def _without(arguments: list[str], option: str) -> list[str]:
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == option:
            next(rest, None)
        elif not argument.startswith(f"{option}="):
            kept.append(argument)
    return kept


def _short(path: str | Path) -> str:
    """Relative to the working folder where it lies in there."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "less than a second"
