"""The summary that ``fit`` prints at its end: what was trained, from which teachers, and where the results are."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from xtoken_pl.batch import Domain
from xtoken_pl.checkpoints.io import is_remote
from xtoken_pl.cli.config_files import split_option
from xtoken_pl.data.validation import validates
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.run_folder import run_folder

_BITS_PER_BYTE = "val/bits_per_byte"


class Validation(NamedTuple):
    """Bits per byte of the validation texts at one step."""

    step: int
    bits_per_byte: float

    def __str__(self) -> str:
        return f"{self.bits_per_byte:.3f} at step {self.step:,}"


class RunSummary(pl.Callback):
    """Collects the results of a run and writes its summary.

    The validation before the first step is Lightning's sanity check, if it covers all validation batches
    (``trainer.num_sanity_val_steps: -1``, the command line's default). It is logged as the metrics of step 0, so that
    curves begin at the start of the run, and stored in checkpoints for resumed runs.

    Args:
        arguments: Arguments of the run after ``python -m xtoken_pl``, for the command that resumes it.
    """

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self.arguments = list(arguments)
        self.before: Validation | None = None
        self.after: Validation | None = None
        self._start_time, self._first_step = time.monotonic(), 0
        self._saved_step: int | None = None  # of the last checkpoint of this run that training can resume from

    def state_dict(self) -> dict[str, Any]:
        return {} if self.before is None else {"before": list(self.before)}

    def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
        """Notes the step; Lightning does not call this for a checkpoint of weights alone."""
        self._saved_step = trainer.global_step

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
        self._start_time, self._first_step = time.monotonic(), trainer.global_step
        self._saved_step = None  # a learning rate finder may have saved and removed one

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes a run with ModelCheckpoint store a checkpoint if none was due; a fast_dev_run stores none.

        ModelCheckpoint comes after this callback, and stores a last checkpoint now if it has stored none before.
        """
        callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            for callback in callbacks:
                callback.save_last = False
        elif self._saved_step is None and not any(callback.save_last for callback in callbacks):
            for callback in [callback for callback in callbacks if callback.save_top_k != 0][:1]:
                callback.save_last = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            checkpoint = next((newest for _, newest in _checkpoints(trainer)), None)
            advice = (
                "no checkpoint was written (ModelCheckpoint with save_last or every_n_train_steps writes some)"
                if checkpoint is None
                else f"the last checkpoint is {_short(checkpoint)}; to resume: {self._how_to_resume(trainer)}"
            )
            print(f"\nstopped at step {trainer.global_step:,}; {advice}")

    def text(self, trainer: pl.Trainer, module: MultiTeacherDistillModule) -> str:
        """Returns the summary. Every process must call it, since Lightning broadcasts the log directory."""
        num_steps = trainer.global_step - self._first_step
        title = (
            f"trained {num_steps:,} step{'s' * (num_steps != 1)} in {_duration(time.monotonic() - self._start_time)}"
        )
        if self._first_step:
            title += f", from step {self._first_step:,} to step {trainer.global_step:,}"
        domains = getattr(cast(Any, trainer).datamodule, "domains", {}).get("train", [])
        rows = [*_models(module, domains), ("bits per byte", self._bits_per_byte(trainer)), *self._places(trainer)]
        width = max(len(label) for label, _ in rows)
        return "\n".join([title, *(f"  {label:<{width}}  {text}" for label, text in rows)])

    def _bits_per_byte(self, trainer: pl.Trainer) -> str:
        if not validates(trainer):
            return f"not validated; set {'data.val.path' if trainer.enable_validation else 'trainer.limit_val_batches'}"
        before = self.before or "not measured before the first step (trainer.num_sanity_val_steps: -1)"
        after = self.after or "not measured since: no validation was due (trainer.val_check_interval)"
        return f"{before}, {after}"

    def _places(self, trainer: pl.Trainer) -> Iterator[tuple[str, str]]:
        folder = run_folder(trainer)
        for callback, newest in _checkpoints(trainer):
            score = cast(Any, callback.best_model_score)
            if callback.monitor and score is not None:
                yield "best checkpoint", f"{_short(callback.best_model_path)} ({callback.monitor} {float(score):.3f})"
            is_last = self._saved_step in (None, trainer.global_step)
            yield "last checkpoint", _short(newest) + ("" if is_last else f", of step {self._saved_step:,}")
        for callback in cast(Any, trainer).callbacks:
            for what, place in getattr(callback, "written", {}).items():
                yield what, _short(place)
        watch = next((logger.save_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        yield "logs", _short(folder) + ("" if watch is None else f"; to watch: tensorboard --logdir {_short(watch)}")
        yield "to resume", self._how_to_resume(trainer)

    def _how_to_resume(self, trainer: pl.Trainer) -> str:
        """Returns the command that resumes the run; without a checkpoint for it, how to start from its weights."""
        if self._saved_step is not None or trainer.ckpt_path is not None:
            return self.resume_command(trainer)
        for callback in cast(Any, trainer).callbacks:
            if (export := getattr(callback, "written", {}).get("export")) is not None:
                return f"no checkpoint holds the optimizer; start a run with --model.student.model {_short(export)}"
        if newest := next((newest for _, newest in _checkpoints(trainer)), None):
            return (
                f"the checkpoints hold weights alone; start a run from the student that `python -m xtoken_pl export "
                f"--checkpoint {_short(newest)}` writes"
            )
        return "nothing was stored (ModelCheckpoint stores checkpoints, HFExport the student)"

    def resume_command(self, trainer: pl.Trainer) -> str:
        """Returns the run's command with ``--ckpt_path last``, and twice the steps or epochs if these are used up."""
        options = {"--ckpt_path": "last"}
        if 0 <= trainer.max_steps <= trainer.global_step:
            options["--trainer.max_steps"] = str(2 * trainer.max_steps)
        elif trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch:
            options["--trainer.max_epochs"] = str(2 * trainer.max_epochs)
        arguments = split_option(self.arguments, *options)[1]
        return shlex.join(["python", "-m", "xtoken_pl", *arguments, *chain(*options.items())])


def _checkpoints(trainer: pl.Trainer) -> Iterator[tuple[ModelCheckpoint, str]]:
    """Yields each ModelCheckpoint that has written a file, and the path of its newest one."""
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        newest = callback.last_model_path or callback.best_model_path
        if newest and (is_remote(newest) or Path(newest).exists()):
            yield callback, newest


def _models(module: MultiTeacherDistillModule, domains: Sequence[Domain]) -> Iterator[tuple[str, str]]:
    source = module.student_source
    # num_parameters takes into account that quantized weights are packed.
    total, learned = module.student.num_parameters(), module.student.num_parameters(only_trainable=True)
    share = "" if learned == total else f", {learned / 1e6:,.1f} million of them trained"
    yield "student", f"{source.model} ({source.weights} weights), {total / 1e6:,.1f} million parameters{share}"
    for name, teacher in module.teachers.items():
        of = teacher.model if teacher.origin is None else f"{teacher.model}, {teacher.origin}"
        loss = type(module.losses[name]).__name__
        alpha = _alpha(name, teacher.alpha, domains)
        if teacher.spans:
            kinds = ", ".join(f"{kind} {weight:g}" for kind, weight in teacher.spans.items())
            alpha += f", spans weighted by kind: {kinds}"
        weight = alpha if name in module.trained_teachers else "not learned from (kd_weight 0)"
        yield f"teacher {name}", f"{of}: {loss} ({module.loss_reasons[name]}), {weight}"
    if not module.teachers:
        yield "teachers", "none: cross-entropy alone"


def _alpha(teacher: str, own: float, domains: Sequence[Domain]) -> str:
    """Describes a teacher's alpha, by source where it is not the same on all of them."""
    given = {domain.source: domain.alphas[teacher] for domain in domains if teacher in domain.alphas}
    alphas = {source: own if alpha is None else alpha for source, alpha in given.items()} or {"": own}
    if len(set(alphas.values())) == 1 and len(alphas) >= len({domain.source for domain in domains}):
        return f"alpha {next(iter(alphas.values())):g}"
    return ", ".join(f"alpha {alpha:g} on {source}" for source, alpha in alphas.items())


def _short(path: str | Path) -> str:
    """Returns the path relative to the working directory if it is inside."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "less than a second"
