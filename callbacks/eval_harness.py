"""Evaluates the student on benchmarks during training, with EleutherAI's lm-eval."""

from __future__ import annotations

import difflib
import json
import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from xtoken_pl.callbacks.clocks import pause_clock
from xtoken_pl.callbacks.shared import distill_module, output_folder
from xtoken_pl.models.inference import inference_state
from xtoken_pl.utilities.checks import check_at_least_one
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path
from xtoken_pl.utilities.lightning_internals import is_accumulating

logger = logging.getLogger(__name__)

# The defaults of lm-eval's command line, so that the same examples are drawn.
_PYTHON_SEED, _SEED = 0, 1234
# Enough for standard errors without a closed form.
_BOOTSTRAP_DRAWS = 100


class EvalHarness(pl.Callback):
    """Runs tasks of lm-eval on the student every n steps and when training ends; needs the extra ``eval``.

    Logs ``eval/TASK/METRIC`` (and ``/FILTER`` for tasks with filters) at the same step as a validation after that
    step, and writes everything that lm-eval reports (shots, versions, numbers of questions, standard errors) to
    ``evaluation/step=N.json`` in the run's log directory. The values are also in ``trainer.callback_metrics``, so that
    ``ModelCheckpoint`` can monitor one.

    The results are those of lm-eval for the exported student, with the softmax in float32. Evaluation does not change
    training. Several processes share the questions; a sharded student is gathered in every process meanwhile. The
    first question of each task is run before training, to find errors early.

    Args:
        tasks: Number of few-shot examples by name of the task or group; None for the task's default.
        every_n_steps: Optimizer steps between evaluations; None evaluates only at the end.
        at_end: Also evaluate when training ends.
        include_path: Directory with additional task files.
        limit: Number of questions per task, the first ones; None for all.
        batch_size: Requests per forward pass and process. Full logits are held: batch x tokens x vocabulary.

    Raises:
        UserError: Before training, if lm-eval, a task or ``include_path`` does not exist, or a task cannot be run.

    References:
        [0] https://github.com/EleutherAI/lm-evaluation-harness
    """

    def __init__(
        self,
        tasks: dict[str, int | None],
        *,
        every_n_steps: int | None = None,
        at_end: bool = True,
        include_path: str | None = None,
        limit: int | None = None,
        batch_size: int = 8,
    ) -> None:
        if not tasks:
            raise UserError("tasks must name at least one task of lm-eval, got none; remove the callback")
        for name, shots in tasks.items():
            if shots is not None and shots < 0:
                raise UserError(
                    f"the number of examples of task {name!r} must be >= 0, got {shots}; leave it empty for the default"
                )
        for option, value in (("every_n_steps", every_n_steps), ("limit", limit), ("batch_size", batch_size)):
            check_at_least_one(option, value)
        if every_n_steps is None and not at_end:
            raise UserError(
                "EvalHarness would never run with every_n_steps=None and at_end=False; set one, or remove the callback"
            )
        self.tasks = tasks
        self.every_n_steps = every_n_steps
        self.at_end = at_end
        self.include_path = include_path
        self.limit = limit
        self.batch_size = batch_size
        self._manager: Any = None
        self._loaded: dict[str, dict[str, Any]] = {}
        self._parts: dict[str, list[str]] = {}
        self._lm: Any = None
        self._evaluated = -1

    # Before training -------------------------------------------------------------------------------------------------

    def check_module(self, pl_module: pl.LightningModule) -> None:
        """Checks that lm-eval and the tasks exist. The command line calls this before it reads any data."""
        distill_module(pl_module, self)
        if find_spec("lm_eval") is None:
            raise UserError(
                "EvalHarness needs lm-eval, which is not installed; install it (pip install 'xtoken_pl[eval]'), or "
                "remove the callback"
            )
        self._manager = self._manager or self._task_manager()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.check_module(pl_module)
        with isolate_rng():  # loading draws random numbers
            self._loaded = self._load_tasks()

    def _task_manager(self) -> Any:
        """Builds lm-eval's index of tasks, without its built-in tasks (which take seconds) if they are not needed."""
        from lm_eval.tasks import TaskManager

        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise UserError(
                f"include_path must be a directory with task files of lm-eval, but {self.include_path!r} is not a "
                "directory; check the path"
            )
        manager = TaskManager(include_path=self.include_path, include_defaults=False)
        if set(self.tasks) <= set(manager.all_tasks):
            return manager
        manager = TaskManager(include_path=self.include_path)
        for name in self.tasks:
            if name not in manager.all_tasks:
                nearest = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.0)
                raise UserError(
                    f"tasks must be names of lm-eval's tasks or groups; there is no {name!r}. The nearest: "
                    f"{', '.join(nearest)}. `lm-eval ls tasks` lists them all; include_path adds your own"
                )
        return manager

    def _load_tasks(self) -> dict[str, dict[str, Any]]:
        """Loads the tasks with their data and few-shot settings, and the groups, in lm-eval's format."""
        loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
        for name, shots in self.tasks.items():
            try:
                found = self._manager.load([name])
            except Exception as error:
                raise UserError(
                    f"task {name!r} could not be loaded; check that its data can be read and its packages are "
                    f"installed. Reason: {error}"
                ) from error
            for part, task in found["tasks"].items():
                if part in loaded["tasks"]:
                    raise UserError(
                        f"each task must be named once, but {name!r} contains {part!r} again; leave one out"
                    )
                if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                    raise UserError(
                        f"tasks must be text only and must not run code that the student wrote, unlike {part!r}; "
                        "evaluate the exported student with lm-eval itself"
                    )
                own = task.get_config("num_fewshot") or 0
                task.set_config(key="num_fewshot", value=own if shots is None else shots)
            for kind, parts in loaded.items():
                parts |= found.get(kind, {})
            self._parts[name] = list(found["tasks"])
        return loaded

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluated = trainer.global_step
        self._run(trainer, pl_module, limit=1)  # not logged

    # Evaluations -----------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ends_step = self.every_n_steps is not None and not is_accumulating(trainer)
        if ends_step and trainer.global_step % self.every_n_steps == 0:  # type: ignore[operator]
            self._evaluate(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.at_end and trainer.global_step > self._evaluated:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # on_train_start has run the first questions
        self._evaluated = trainer.global_step
        start = time.monotonic()
        results = self._run(trainer, pl_module, limit=self.limit)
        seconds = time.monotonic() - start
        values = {f"eval/{tag}": value for tag, value in scalars(results, self._parts).items()}
        trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in values.items()})
        for destination in trainer.loggers:
            # Lightning counts steps from 0: a validation after this step logs at the same value.
            destination.log_metrics(values, step=trainer.global_step - 1)
        target = output_folder(trainer, None, "evaluation") / f"step={trainer.global_step}.json"
        if trainer.is_global_zero:
            self._write(target, results, trainer, seconds)

    def _write(self, target: Path, results: dict[str, Any], trainer: pl.Trainer, seconds: float) -> None:
        report = {
            "step": trainer.global_step,
            "seconds": round(seconds, 1),
            "num_processes": trainer.world_size,
            "precision": str(trainer.precision),
            "tasks": self.tasks,
            "limit": self.limit,
            "batch_size": self.batch_size,
            "lm_eval": version("lm_eval"),
            **results,
        }
        # A run resumed from an earlier checkpoint reaches the same step again.
        with atomic_path(target, kind="file", overwrite=True) as path:
            path.write_text(json.dumps(report, indent=2, ensure_ascii=False, default=str) + "\n")
        logger.info("evaluated the student after step %d in %.0f s: %s", trainer.global_step, seconds, target)

    def _run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, limit: int | None) -> dict[str, Any]:
        from lm_eval.evaluator import evaluate

        from xtoken_pl.callbacks.divided_lm import DividedLM

        pause_clock(trainer)
        module = distill_module(pl_module, self)
        with evaluation_state(module.student), trainer.precision_plugin.val_step_context():
            if self._lm is None:
                device = module.device.type
                autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
                self._lm = DividedLM(module, batch_size=self.batch_size, autocast=autocast)
            random.seed(_PYTHON_SEED)
            np.random.seed(_SEED)
            torch.manual_seed(_SEED)
            for task in self._loaded["tasks"].values():
                task.set_fewshot_seed(seed=_SEED)
            options = {"limit": limit, "bootstrap_iters": _BOOTSTRAP_DRAWS, "log_samples": False}
            return dict(evaluate(lm=self._lm, task_dict=self._loaded, **options))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._lm = None  # it holds the student


@contextmanager
def evaluation_state(student: torch.nn.Module) -> Iterator[None]:
    """Enters :func:`~xtoken_pl.models.inference.inference_state`, and restores the random states afterwards."""
    with isolate_rng(), inference_state(student):
        yield


def scalars(results: dict[str, Any], parts: dict[str, list[str]]) -> dict[str, float]:
    """Returns scores by ``TASK/METRIC`` or ``TASK/METRIC/FILTER``; for a group without a score, those of its tasks.

    Args:
        results: Results of lm-eval.
        parts: Tasks of each name.
    """
    found: dict[str, float] = {}
    for name, tasks in parts.items():
        for scored in [name] if _metrics(results["results"].get(name, {})) else tasks:
            found |= {f"{scored}/{metric}": value for metric, value in _metrics(results["results"][scored]).items()}
    return found


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """Metrics of a task; lm-eval writes them as ``METRIC,FILTER``, and other values without a comma."""
    found = {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            found[metric if kind == "none" else f"{metric}/{kind}"] = float(value)
    return found
