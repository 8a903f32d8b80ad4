"""The command line: ``fit``, ``validate`` and ``test`` on LightningCLI, and verbs that need no module.

``python -m xtoken_pl fit --config configs/quickstart.yaml --model.teachers.smollm2.alpha 0.8``

``plan`` and ``cache`` take the options of ``fit``, and so does ``inspect`` where it is given a ``--config``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from jsonargparse import ArgumentParser, auto_cli
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from xtoken_pl.checkpoints import AtomicCheckpointIO, Run, describe_student, last_checkpoint, verify
from xtoken_pl.cli.cache import CACHE_DESCRIPTION, CacheOptions, cache_run
from xtoken_pl.cli.config_files import merge_config_arguments, names_config
from xtoken_pl.cli.dashboard import dashboard
from xtoken_pl.cli.export import export
from xtoken_pl.cli.inspect import INSPECT_DESCRIPTION, InspectOptions, inspect, inspect_run
from xtoken_pl.cli.plan import PLAN_DESCRIPTION, PlanOptions, plan_run
from xtoken_pl.cli.preflight import check_fit, check_positions
from xtoken_pl.cli.prepare import prepare
from xtoken_pl.cli.run_summary import RunSummary
from xtoken_pl.cli.usage import UsageError, choose_verb, explained, explaining
from xtoken_pl.cli.verbs import audit, prefix_map, project
from xtoken_pl.data import DistillDataModule
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.lightning_internals import has_checkpoint_io
from xtoken_pl.utilities.run_folder import run_folder


class KeepConfig(SaveConfigCallback):
    """Keeps the configuration of a run beside its results.

    It gets a name of its own where a run goes on, or has no logger and so no folder of its own.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        # Lightning's own place is the logger's folder, which several runs may share.
        super().__init__(*args, **{"save_to_log_dir": False, **options})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder, number = run_folder(trainer), 1
        shares_folder = self.config.get("ckpt_path") is not None or not trainer.loggers
        self._target = folder / self.config_filename
        # Every process asks before the first one writes, which is behind a broadcast.
        while shares_folder and not self.already_saved and self._target.exists():
            number += 1
            self._target = folder / f"{Path(self.config_filename).stem}_{number}.yaml"
        is_taken = trainer.strategy.broadcast(self._target.exists()) and not self.overwrite
        if is_taken and not self.already_saved:
            raise UserError(
                f"{self._target} is the configuration of another run, which is not overwritten unasked; choose another "
                "folder (that of trainer.logger, or trainer.default_root_dir), or move it away"
            )
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file; only the first process is asked to."""
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self.parser.save(
            self.config, str(self._target), skip_none=False, overwrite=self.overwrite, multifile=self.multifile
        )


class DistillCLI(LightningCLI):
    """LightningCLI with the defaults of the paper's recipe, and a summary at the end of ``fit``."""

    def __init__(self, *args: Any, arguments: Sequence[str] = (), **options: Any) -> None:
        self.summary = RunSummary(arguments)
        super().__init__(*args, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults(
            {
                "trainer.gradient_clip_val": 1.0,
                "trainer.num_sanity_val_steps": -1,  # the validation before the first step: what a run began with
            }
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with checkpoints that are written whole or not at all, unless another CheckpointIO is given."""
        given = {**(self.config_init[self.subcommand].get("trainer") or {}), **kwargs}
        plugins = _as_list(given.get("plugins"))
        chosen = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
        if not chosen and not has_checkpoint_io(given.get("strategy")):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if given.get("barebones"):
            kwargs["num_sanity_val_steps"] = None  # it takes none, not even our default
        kwargs["callbacks"] = [*_as_list(given.get("callbacks")), self.summary]
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            names = ("accelerator", "devices", "num_nodes", "strategy", "precision")
            values = [f"{name}={given[name]}" for name in names if given.get(name) not in (None, "auto", 1)]
            raise UsageError(
                f"no trainer can be made{' with ' if values else ''}{', '.join(values)}: {str(error).rstrip('.!')}; "
                "change the settings under trainer"
            ) from error

    def before_fit(self) -> None:
        """Refuses what callbacks cannot work with, damaged checkpoints and other students', before texts are read."""
        for callback in cast(Any, self.trainer).callbacks:
            if check := getattr(callback, "check_module", None):
                check(self.model)
        check_fit(self.trainer, self.model, self.datamodule)
        self._find_checkpoint()

    def before_validate(self) -> None:
        """Refuses windows that are longer than a model's, and a damaged checkpoint."""
        check_positions(self.model, self.datamodule)
        self._find_checkpoint()

    def before_test(self) -> None:
        """Refuses the same as before validation."""
        self.before_validate()

    def after_fit(self) -> None:
        """Says what was trained, from whom, and where the results are."""
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            text = self.summary.text(self.trainer, cast(MultiTeacherDistillModule, self.model))
            if self.trainer.is_global_zero:
                print(f"\n{text}")

    def _find_checkpoint(self) -> None:
        """Puts the path of the last checkpoint in place of ``last``; every process finds the same one.

        Raises:
            UserError: If there is none: Lightning would start from scratch without a word, or look for it last.
            UserError: If it is damaged, or of another student.
        """
        settings = self.config_init[self.subcommand]
        if settings.get("ckpt_path") == "last":
            settings["ckpt_path"] = str(last_checkpoint(self.trainer))
        if path := settings.get("ckpt_path"):
            student = describe_student(self.model.student_source, self.model.student_vocabulary)
            verify(path, Run(student=student), cast(Any, self.subcommand))

    def _parse_ckpt_path(self) -> None:
        """Does nothing, so that the command line wins over hyperparameters that a checkpoint may hold.

        Overrides a method of LightningCLI that is not public, which would put them over the configuration.
        """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """fit, validate and test; the module predicts nothing."""
        verbs = LightningCLI.subcommands()
        return {name: verbs[name] for name in ("fit", "validate", "test")}


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


class PartsCLI(DistillCLI):
    """Takes the options of ``fit`` and those of ``verb``, and builds the module and the data module, but no trainer.

    What a trainer would need may not be on this machine.
    """

    def __init__(self, *args: Any, name: str, verb: PartsVerb, **options: Any) -> None:
        self.name, self.verb = name, verb
        # LightningCLI takes the options of a verb from the trainer's method of its name.
        trainer_class = type("_Trainer", (Trainer,), {name: Trainer.fit})
        super().__init__(*args, **{"trainer_class": trainer_class, **options})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_class_arguments(self.verb.options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The verb alone, whose options stand for those of ``fit`` that have their names."""
        return {self.name: LightningCLI.subcommands()["fit"] | {field.name for field in fields(self.verb.options)}}

    def instantiate_classes(self) -> None:
        config = self.config.clone()
        self.trainer_config = config[self.name].pop("trainer").as_dict()
        self.config_init = self.parser.instantiate_classes(config)
        self.model, self.datamodule = self.config_init[self.name]["model"], self.config_init[self.name]["data"]

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the verb; overrides a method of LightningCLI that is not public, which would ask the trainer to."""
        given = self.config[subcommand]
        options = self.verb.options(**{field.name: given[field.name] for field in fields(self.verb.options)})
        check_positions(self.model, self.datamodule, asked=getattr(options, "teacher", None))
        self.verb.run(self.model, self.datamodule, self.trainer_config, options)


class PartsVerb(NamedTuple):
    """A verb that needs the module and the data module of a run, and the trainer's configuration at most."""

    description: str
    options: Any  # a dataclass
    run: Callable[[Any, Any, dict[str, Any], Any], None]


PARTS_VERBS = {
    "plan": PartsVerb(PLAN_DESCRIPTION, PlanOptions, plan_run),
    "cache": PartsVerb(CACHE_DESCRIPTION, CacheOptions, cache_run),
    "inspect": PartsVerb(INSPECT_DESCRIPTION, InspectOptions, inspect_run),
}

#: Verbs that run without a module and a trainer. One of PARTS_VERBS, too, does so where no --config is given.
VERBS: dict[str, Callable[..., None]] = {
    "project": project,
    "prefix_map": prefix_map,
    "audit": audit,
    "inspect": inspect,
    "export": export,
    "prepare": prepare,
    "dashboard": dashboard,
}


def main(arguments: list[str] | None = None) -> None:
    """Runs one verb; ``arguments`` default to the command line's."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("xtoken_pl").setLevel(logging.INFO)
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = choose_verb(given, {**DistillCLI.subcommands(), **PARTS_VERBS, **VERBS})
    with explained(given):
        if name in VERBS and not (name in PARTS_VERBS and names_config(given)):
            program = f"python -m xtoken_pl {name}"
            parser = explaining(ArgumentParser)
            auto_cli(VERBS[name], args=given[1:], prog=program, as_positional=False, parser_class=parser)
        else:
            _run_with_module(name, given, from_command_line=arguments is None)


def _only(name: str) -> type[DistillCLI]:
    """With the parser of one verb, where there is one: every parser takes a quarter of a second."""
    if name not in (verbs := DistillCLI.subcommands()):
        return DistillCLI
    return type("OneVerbCLI", (DistillCLI,), {"subcommands": staticmethod(lambda: {name: verbs[name]})})


def _run_with_module(name: str, given: list[str], *, from_command_line: bool) -> None:
    merged = merge_config_arguments(given)
    if from_command_line:
        # Processes that Lightning starts on this machine are given sys.argv.
        sys.argv[1:] = merged
    verb = PARTS_VERBS.get(name)
    command = _only(name) if verb is None else partial(PartsCLI, name=name, verb=verb)
    command(
        MultiTeacherDistillModule,
        DistillDataModule,
        arguments=given,
        args=None if from_command_line else merged,
        save_config_callback=KeepConfig,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        parser_class=explaining(LightningArgumentParser),
        parser_kwargs={
            "prog": "python -m xtoken_pl",
            "description": "Distil language models across tokenizers.",
            "epilog": f"further verbs, each with its own --help: {', '.join({**PARTS_VERBS, **VERBS})}",
            **({} if verb is None else {name: {"description": verb.description}}),
        },
    )
