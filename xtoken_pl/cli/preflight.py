"""Checks settings that would fail late, or have no effect, before texts are read and models are loaded."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from xtoken_pl.cli.idle_options import warn_of_idle_options, warn_of_missing_eos
from xtoken_pl.data import DistillDataModule
from xtoken_pl.data.mixture import with_teachers
from xtoken_pl.models.loading import check_weights
from xtoken_pl.models.text_model import read_config
from xtoken_pl.specs import ModelSource
from xtoken_pl.training.metrics import EvaluationMetrics
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.words import did_you_mean

#: Packages whose callbacks log no other ``val/`` tags than those known here.
_KNOWN_PACKAGES = ("lightning", "xtoken_pl")
#: Callbacks that log tags in addition to ``val/``, by the prefix of these tags.
_LOGGED_BY = {
    "train/": ("TeacherMonitor", "AlignmentMonitor"),
    "eval/": ("EvalHarness",),
    "numerals/": ("NumeralMonitor",),
    "projection/": ("ProjectionMonitor",),
    "span_kinds/": ("SpanKindMonitor",),
    "throughput/": ("ThroughputMonitor",),
    "rollouts/": ("TeacherMonitor", "AlignmentMonitor", "RolloutMonitor"),
}


def check_fit(trainer: pl.Trainer, module: pl.LightningModule, data: Any) -> None:
    """Checks the settings of a training run, and the names and shapes of the models' weights.

    Raises:
        UserError: If a setting is invalid, or a model's weights are incomplete.
    """
    if trainer.max_steps == 0:
        raise UserError("trainer.max_steps must be >= 1, got 0; give a number, or -1 and trainer.max_epochs")
    if trainer.accumulate_grad_batches < 1:
        raise UserError(
            f"trainer.accumulate_grad_batches must be >= 1, got {trainer.accumulate_grad_batches}; with 1 every batch "
            "is a step"
        )
    if (trainer.gradient_clip_val or 0) < 0:
        raise UserError(
            f"trainer.gradient_clip_val must be >= 0, got {trainer.gradient_clip_val}; 0 leaves gradients as they are"
        )
    if trainer.limit_train_batches == 0:
        raise UserError("trainer.limit_train_batches must be > 0, got 0; to measure a model without training: validate")
    for name, interval in {
        "val_check_interval": _interval(trainer),
        "check_val_every_n_epoch": trainer.check_val_every_n_epoch,
    }.items():
        if interval == 0:
            raise UserError(f"trainer.{name} must be > 0, got 0; trainer.limit_val_batches: 0 disables validation")
    if isinstance(data, DistillDataModule):
        _check_stream(trainer, data)
        _check_monitors(trainer, module, data)
        warn_of_idle_options(module, data)
    check_positions(module, data)
    if isinstance(module, MultiTeacherDistillModule):
        for role, source in _sources(module).items():
            check_weights(source, role=role)
        if isinstance(data, DistillDataModule):
            warn_of_missing_eos(module, data)


class IntervalCheck(Callback):
    """Refuses validations that would never come, once the number of batches is known."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data, interval, every = cast(Any, trainer).datamodule, _interval(trainer), trainer.check_val_every_n_epoch
        is_known = stage == "fit" and isinstance(data, DistillDataModule) and not data.streaming
        is_checked = isinstance(interval, int) or trainer.early_stopping_callbacks
        if not (is_known and is_checked) or interval is None or every is None:
            return
        num_batches, limit = len(cast(Any, data.train_dataloader())), trainer.limit_train_batches
        num_batches = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
        first = (every - 1) * num_batches + (interval if isinstance(interval, int) else int(interval * num_batches))
        _check_early_stopping(trainer, first)
        if isinstance(interval, int) and interval > num_batches and trainer.limit_val_batches > 0:
            raise UserError(
                f"trainer.val_check_interval must be at most the number of training batches ({num_batches}), got "
                f"{interval}; lower it, set trainer.check_val_every_n_epoch to null to count batches over all epochs, "
                "or disable validation with trainer.limit_val_batches: 0"
            )


def _interval(trainer: pl.Trainer) -> int | float | None:
    """Returns the validation interval in batches or in epochs; None if it is a time."""
    return getattr(trainer, "val_check_interval", None)


def _check_early_stopping(trainer: pl.Trainer, first: int) -> None:
    """Checks that EarlyStopping has something to look at; else Lightning fails after the last step.

    Args:
        trainer: The trainer.
        first: Number of batches before the first validation.
    """
    num_batches = trainer.max_steps * trainer.accumulate_grad_batches
    for callback in trainer.early_stopping_callbacks:
        is_needed = isinstance(callback, EarlyStopping) and callback.strict and callback.monitor.startswith("val/")
        if is_needed and 0 <= num_batches < first:
            raise UserError(
                f"EarlyStopping monitors {callback.monitor!r}, which is first measured after {first:,} batches, and "
                f"training ends before (trainer.max_steps: {trainer.max_steps}); lower trainer.val_check_interval, or "
                "remove the callback"
            )


def check_positions(module: pl.LightningModule, data: Any, *, asked: str | None = None) -> None:
    """Checks that every model in this process has at least as many positions as a window has tokens.

    The context of a server is checked when it is first asked.

    Args:
        module: The run's module.
        data: The run's data module.
        asked: Teacher that runs although it has a cache, because its cache is being built.

    Raises:
        UserError: If the student or a teacher has fewer positions.
    """
    if not (isinstance(module, MultiTeacherDistillModule) and isinstance(data, DistillDataModule)):
        return
    for role, source in _sources(module, asked=asked).items():
        limit = _num_positions(source)
        if limit is not None and data.sequence_length > limit:
            raise UserError(
                f"data.sequence_length must be at most the positions that every model has, got {data.sequence_length}, "
                f"and the {role} ({source.model!r}) has {limit}; lower it to {limit}, take another model, or, "
                "to extend one that can be, raise max_position_embeddings in its config.json"
            )


def _sources(module: MultiTeacherDistillModule, *, asked: str | None = None) -> dict[str, ModelSource]:
    """Specifications of the models that run in this process, by their role in messages."""
    sources: dict[str, ModelSource] = {"student": module.student_source}
    for name, teacher in module.teachers.items():
        if teacher.server is None and (teacher.cache is None or name == asked):
            sources[f"teacher {name!r}"] = teacher
    return sources


def _num_positions(source: ModelSource) -> int | None:
    try:
        config = read_config(source.model, revision=source.revision, trust_remote_code=source.trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None  # loading the tokenizer or the model will report the reason
    limit = getattr(config, "max_position_embeddings", None)
    # Scaled rotary positions reach further than those that the model was first trained with.
    scaling = getattr(config, "rope_parameters", None) or {}
    original = scaling.get("original_max_position_embeddings", limit)
    return None if limit is None else max(limit, round(original * scaling.get("factor", 1)))


def _check_stream(trainer: pl.Trainer, data: DistillDataModule) -> None:
    if not data.streaming:
        return
    ends_with_epochs = isinstance(trainer.limit_train_batches, int) and trainer.max_epochs not in (None, -1)
    if trainer.max_steps == -1 and not ends_with_epochs:
        raise UserError(
            "a stream has no epochs, so that trainer.max_steps must be >= 1, got -1; give a number of steps, or set "
            "data.streaming to false"
        )
    interval = _interval(trainer)
    if data.sources["val"] is not None and isinstance(interval, float) and interval != 1.0:
        raise UserError(
            "trainer.val_check_interval must be a whole number of steps for a stream, which has no epochs, got "
            f"{interval}; give a number of steps, or set data.streaming to false"
        )


def _check_monitors(trainer: pl.Trainer, module: pl.LightningModule, data: DistillDataModule) -> None:
    """Checks that monitored tags are logged; Lightning does so only when the first checkpoint is due, hours later."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    unknown = [callback for callback in callbacks if type(callback).__module__.split(".")[0] not in _KNOWN_PACKAGES]
    if type(module) is not MultiTeacherDistillModule or unknown:
        return  # these may log any tag
    domains = [domain for part in with_teachers(data.splits, module.teachers)["val"] for domain in part.domains]
    known = {f"val/{tag}": None for tag, _ in EvaluationMetrics(module.teachers, domains).items()}
    for callback in callbacks:
        tag = getattr(callback, "monitor", None)
        if not (isinstance(callback, ModelCheckpoint | EarlyStopping) and isinstance(tag, str)):
            continue
        name = type(callback).__name__
        if tag.startswith("val/") and (data.sources["val"] is None or trainer.limit_val_batches == 0):
            missing = (
                "there are none; set data.val.path"
                if data.sources["val"] is None
                else ("trainer.limit_val_batches is 0; raise it")
            )
            raise UserError(
                f"{name} monitors {tag!r}, which needs texts to validate on, and {missing}, or monitor a tag of "
                "training, such as 'train/loss'"
            )
        if reason := _why_never_logged(module, tag):
            raise UserError(f"{name} monitors {tag!r}, and {reason}; monitor another tag")
        if tag in known:
            _check_mode(cast(Any, callback), tag)
        elif loggers := next((names for prefix, names in _LOGGED_BY.items() if tag.startswith(prefix)), None):
            if not any(base.__name__ in loggers for other in callbacks for base in type(other).__mro__):
                raise UserError(
                    f"{name} monitors {tag!r}, which only {' or '.join(loggers)} logs; add it to trainer.callbacks, or "
                    "monitor another tag"
                )
        elif near := did_you_mean(tag, known):
            raise UserError(f"{name}.monitor must be a tag that is logged, got {tag!r}{near}")


def _why_never_logged(module: MultiTeacherDistillModule, tag: str) -> str | None:
    """Reason why no step has a tag; None if some may have it."""
    if tag.startswith("rollouts/") and module.rollouts is None:
        return "without model.rollouts no step is on-policy"
    if tag.startswith(("train/", "data/")) and module.rollouts is not None and not module.rollouts.learns_data:
        return "at model.rollouts.share: 1 no step learns the data"
    return None


def _check_mode(callback: ModelCheckpoint | EarlyStopping, tag: str) -> None:
    """Checks that the best value of a tag is not taken for the worst: the default mode is min."""
    best = "max" if "/top1_agreement" in tag else "min"
    if callback.mode != best:
        effect = "store the worst checkpoints" if isinstance(callback, ModelCheckpoint) else "stop on improvements"
        name = type(callback).__name__
        raise UserError(
            f"{name}.mode must be {best} for {tag!r}, of which {'more' if best == 'max' else 'less'} is better, got "
            f"{callback.mode}, which would {effect}; set mode: {best}"
        )
