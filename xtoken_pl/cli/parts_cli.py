"""LightningCLI for verbs that take a run's configuration and need no trainer: ``plan``, ``cache`` and ``inspect``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from xtoken_pl.cli.fit import DistillCLI, lightning_errors, run_cli
from xtoken_pl.cli.preflight import check_positions
from xtoken_pl.cli.verbs import VERBS
from xtoken_pl.data import DistillDataModule
from xtoken_pl.utilities.errors import UserError

#: Takes the module, the data module, the trainer's section of the configuration, and the verb's own options.
Action = Callable[[Any, Any, dict[str, Any], Any], object]


def run_with_parts(action: Action, options: Any, arguments: list[str]) -> None:
    """Runs a verb with the module and the data module of a run's configuration.

    Args:
        action: Function that does the work of the verb.
        options: Dataclass of the options in addition to those of ``fit``.
        arguments: The verb and its options.
    """
    command = partial(PartsCLI, action=action, options=options, trainer_class=_AnyTrainer)
    run_cli(command, arguments, description=VERBS[arguments[0]].description)


class _AnyTrainer(Trainer):
    """LightningCLI reads the options of a verb from the trainer's method of that name; no trainer is created."""

    plan = cache = inspect = Trainer.fit


class PartsCLI(DistillCLI):
    """Parses the options of ``fit`` and of a verb, and creates the module and the data module, but no trainer.

    A trainer might need devices that this machine does not have.
    """

    def __init__(self, *args: Any, action: Action, options: Any, **others: Any) -> None:
        self.action, self.options = action, options
        super().__init__(*args, **others)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(self.options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Returns the verb alone; its options replace those of ``fit`` with the same names."""
        return {self.verb: LightningCLI.subcommands()["fit"] | {field.name for field in fields(self.options)}}

    def instantiate_classes(self) -> None:
        config = self.config.clone()
        self.trainer_config = config[self.verb].pop("trainer").as_dict()
        self.config_init = self.parser.instantiate_classes(config)
        self.model, self.datamodule = self.config_init[self.verb]["model"], self.config_init[self.verb]["data"]

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the verb; overrides a method of LightningCLI that is not public and would run it on the trainer."""
        given = self.config[subcommand]
        options = self.options(**{field.name: given[field.name] for field in fields(self.options)})
        if not isinstance(self.datamodule, DistillDataModule):
            given_class = type(self.datamodule).__name__
            raise UserError(f"{subcommand} needs the windows of DistillDataModule, got {given_class}; change `data`")
        check_positions(self.model, self.datamodule, asked=getattr(options, "teacher", None))
        with lightning_errors():
            self.action(self.model, self.datamodule, self.trainer_config, options)
