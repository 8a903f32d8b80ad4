"""``python -m xtoken_pl fit``, ``validate`` and ``test``, on LightningCLI."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from xtoken_pl.checkpoints import AtomicCheckpointIO, Run, describe_student, last_checkpoint, verify
from xtoken_pl.cli.config_files import merge_config_arguments
from xtoken_pl.cli.keep_config import KeepConfig
from xtoken_pl.cli.preflight import IntervalCheck, check_fit, check_positions
from xtoken_pl.cli.progress_bar import StepProgressBar
from xtoken_pl.cli.run_summary import RunSummary
from xtoken_pl.cli.usage import RaisingParser, RefusedError, reason_of_union, refusal, refuse_teachers_without_model
from xtoken_pl.cli.verbs import PROGRAM
from xtoken_pl.data import DistillDataModule
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.training.strategies import check_strategy, check_strategy_choice
from xtoken_pl.utilities.errors import UsageError, UserError, out_of_memory, root_cause
from xtoken_pl.utilities.lightning_internals import has_checkpoint_io

_INTERRUPTED = 130
#: Packages of loggers, which raise errors of their own without an account or a server.
_TRACKERS = ("wandb", "mlflow")


def run(arguments: list[str]) -> None:
    """Runs one of the three verbs."""
    run_cli(DistillCLI, arguments)


def run_cli(command: Callable[..., Any], arguments: list[str], **parser_options: Any) -> None:
    """Runs a verb that takes the options of ``fit``.

    Args:
        command: Parses the arguments and runs the verb: a LightningCLI.
        arguments: The verb and its options.
        parser_options: Options of the verb's parser, such as its description.
    """
    merged = merge_config_arguments(arguments)
    from_command_line = arguments == sys.argv[1:]
    if from_command_line:
        sys.argv[1:] = merged  # Lightning starts the other processes of a run with these arguments
    try:
        command(
            MultiTeacherDistillModule,
            DistillDataModule,
            arguments=arguments,
            args=None if from_command_line else merged,
            save_config_callback=KeepConfig,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            parser_class=DistillParser,
            parser_kwargs={"prog": PROGRAM, arguments[0]: parser_options},
        )
    except RefusedError as error:
        raise refusal(error, arguments) from error


class DistillParser(RaisingParser, LightningArgumentParser):
    """Lightning's parser, raising an error instead of ending the process."""


@contextmanager
def lightning_errors() -> Iterator[None]:
    """Converts errors on settings, on loggers and on exhausted memory to a UserError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error) from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in _TRACKERS:
            raise UserError(f"the logger cannot be used: {error}") from error
        if isinstance(error, ValueError) and "(ckpt_path=" in str(error):  # Lightning has no such checkpoint
            raise UserError(f"there is no such checkpoint: {error}") from error
        if not str(error).startswith("Early stopping conditioned on metric"):  # Lightning has no class for it
            raise
        raise UserError(str(error)) from error


class DistillCLI(LightningCLI):
    """LightningCLI with the defaults of the paper's recipe, and a summary at the end of ``fit``.

    Args:
        arguments: The verb and its options, as the user gave them.
    """

    def __init__(self, *args: Any, arguments: Sequence[str] = ("fit",), **options: Any) -> None:
        self.verb = arguments[0]
        self.summary = RunSummary(arguments)
        super().__init__(*args, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults(
            {
                "trainer.gradient_clip_val": 1.0,
                "trainer.num_sanity_val_steps": -1,  # a full validation before the first step
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        model = self.config[self.config["subcommand"]]["model"]
        refuse_teachers_without_model(model.get("init_args.teachers") or {})

    def instantiate_classes(self) -> None:
        check_strategy_choice(self.config[self.subcommand]["trainer"].get("strategy"))  # before it may need a GPU
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException, ModuleNotFoundError) as error:
            cause = root_cause(error)  # jsonargparse wraps the error of a class that it instantiates
            if isinstance(cause, ModuleNotFoundError):
                raise UserError(f"a package is not installed: {cause}; install it, or remove what needs it") from error
            if isinstance(cause, MisconfigurationException) and not isinstance(error, UserError):
                raise UserError(str(cause)) from error
            if not isinstance(cause, UserError) and (reason := reason_of_union(str(error))):
                raise UserError(f"a class of the configuration refuses its options: {reason}") from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Creates the trainer, by default with our progress bar and atomically written checkpoints."""
        given = {**(self.config_init[self.subcommand].get("trainer") or {}), **kwargs}
        plugins = _as_list(given.get("plugins"))
        chosen = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
        if not chosen and not has_checkpoint_io(given.get("strategy")):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if given.get("barebones"):
            kwargs["num_sanity_val_steps"] = None  # barebones does not allow our default either
        kwargs["callbacks"] = [*_as_list(given.get("callbacks")), self.summary, IntervalCheck()]
        has_bar = any(isinstance(callback, ProgressBar) for callback in kwargs["callbacks"])
        if not (has_bar or given.get("enable_progress_bar") is False or given.get("barebones")):
            kwargs["callbacks"].append(StepProgressBar())
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            names = ("accelerator", "devices", "num_nodes", "strategy", "precision")
            values = [f"{name}={_shown(given[name])}" for name in names if given.get(name) not in (None, "auto", 1)]
            raise UsageError(
                f"invalid trainer settings{f' ({joined})' if (joined := ', '.join(values)) else ''}: "
                f"{str(error).rstrip('.!')}; change them under `trainer:`"
            ) from error

    def before_fit(self) -> None:
        """Checks the strategy, the callbacks, the settings and the checkpoint before texts are read."""
        self._check_strategy()
        for callback in cast(Any, self.trainer).callbacks:
            for name, checked in (("check_module", self.model), ("check_trainer", self.trainer)):
                if check := getattr(callback, name, None):
                    check(checked)
        check_fit(self.trainer, self.model, self.datamodule)
        self._find_checkpoint()

    def before_validate(self) -> None:
        """Checks the strategy, the length of windows, the number of batches and the checkpoint."""
        self._check_strategy()
        check_positions(self.model, self.datamodule)
        name = "limit_test_batches" if self.subcommand == "test" else "limit_val_batches"
        if getattr(self.trainer, name) == 0:
            raise UserError(f"trainer.{name} must be > 0 to measure anything, got 0; leave it out to use all texts")
        self._find_checkpoint()

    def before_test(self) -> None:
        """Checks the same as before validation."""
        self.before_validate()

    def after_fit(self) -> None:
        """Prints the summary."""
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            text = self.summary.text(self.trainer, cast(MultiTeacherDistillModule, self.model))
            if self.trainer.is_global_zero:
                print(f"\n{text}")

    def _check_strategy(self) -> None:
        """Checks the strategy before it starts other processes."""
        check_strategy(self.trainer)
        if isinstance(self.model, MultiTeacherDistillModule):
            self.model.check_tensor_parallel(self.trainer)

    def _find_checkpoint(self) -> None:
        """Replaces ``last`` by the path of the last checkpoint, the same one in every process.

        Raises:
            UserError: If there is none (Lightning would silently start from scratch), or it is damaged or of another
                student.
        """
        settings = self.config_init[self.subcommand]
        if settings.get("ckpt_path") == "best":
            raise UserError(
                "ckpt_path must be a checkpoint or 'last', got 'best', which only the process that trained knows; give "
                "the path of the best checkpoint, which the summary of that run names"
            )
        if settings.get("ckpt_path") == "last":
            settings["ckpt_path"] = str(last_checkpoint(self.trainer))
        if path := settings.get("ckpt_path"):
            student = describe_student(self.model.student_source, self.model.student_vocabulary)
            verify(path, Run(student=student), cast(Any, self.subcommand))

    def _parse_ckpt_path(self) -> None:
        """Does nothing, so that the configuration has precedence over the hyperparameters in a checkpoint.

        Overrides a method of LightningCLI that is not public and would apply the latter.
        """

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Returns the verb alone, since each parser takes a quarter of a second; all three if an option comes first."""
        verbs = LightningCLI.subcommands()
        return {name: verbs[name] for name in ("fit", "validate", "test") if self.verb == name or self.verb[0] == "-"}

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            with lightning_errors():
                super()._run_subcommand(subcommand)
        except SystemExit as error:
            # Lightning exits with code 1 after it has shut down an interrupted run.
            if not self.trainer.interrupted:
                raise
            raise SystemExit(_INTERRUPTED) from error


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _shown(value: Any) -> str:
    """Returns a setting for a message; objects by the name of their class."""
    return str(value) if isinstance(value, str | int | list) else type(value).__name__
