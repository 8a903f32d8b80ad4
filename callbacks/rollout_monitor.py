"""Logs what the student writes in on-policy steps."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import astuple
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from xtoken_pl.callbacks.charts import Charts, Monitor, is_logged
from xtoken_pl.callbacks.length_watch import LengthWatch
from xtoken_pl.callbacks.shared import distill_module, step_kind, step_kinds, written_step
from xtoken_pl.callbacks.trackers import log_table, takes_tables
from xtoken_pl.inspection.rollouts import COLUMNS, rollout_rows
from xtoken_pl.inspection.terminal import BRACKETS
from xtoken_pl.rollouts.statistics import RolloutCounts
from xtoken_pl.rollouts.written import WrittenStep
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.checks import check_at_least_one
from xtoken_pl.utilities.lightning_internals import is_accumulating


class RolloutMonitor(Monitor):
    """Logs the texts that the student writes, over all processes and all on-policy steps since the last log.

    - ``rollouts/length``: mean number of tokens, with the stop token;
    - ``rollouts/ended``: share of the texts that ended with a stop token;
    - ``rollouts/repeated``: share of the 4-grams of tokens that occurred before in the same text;
    - ``rollouts/cut``: share of the texts behind a prompt whose beginning is left out;
    - ``rollouts/teacher_nats_per_byte/NAME`` and ``rollouts/student_nats_per_byte``: negative log-likelihood of the
      texts, averaged over the steps;
    - ``rollouts/seconds``: duration of writing per on-policy step, of the process that takes longest;
    - ``rollouts/tokens_per_second``: tokens written in this time, of all processes.

    At the first on-policy step, and at the first one after every ``every_n_steps`` optimizer steps, TensorBoard, W&B
    and MLflow get the table ``rollouts/samples``: the end of the prompt, the text, why it ended, and both sides' tokens
    with their spans, for each teacher. It shows texts of the first process; steps in which this has none are passed
    over.

    A warning is given once if hardly any text ends although most did, and once if the texts become short or empty;
    :mod:`xtoken_pl.callbacks.length_watch` has the thresholds. A run without rollouts logs nothing.

    Args:
        every_n_steps: Number of optimizer steps between two tables.
        num_samples: Number of texts in a table.

    Raises:
        UserError: If an option is below 1.
    """

    def __init__(self, *, every_n_steps: int = 100, num_samples: int = 4) -> None:
        for name, value in {"every_n_steps": every_n_steps, "num_samples": num_samples}.items():
            check_at_least_one(name, value, "remove the callback for no samples")
        self.every_n_steps = every_n_steps
        self.num_samples = num_samples
        self._watch = LengthWatch()

    def charts(self, module: MultiTeacherDistillModule) -> Charts:
        if "rollouts" not in step_kinds(module):
            return {}
        of_teachers = [f"rollouts/teacher_nats_per_byte/{name}" for name in module.trained_teachers]
        return {
            "Rollouts": {
                "length, tokens": ["rollouts/length"],
                "share that ends, repeats, is cut": ["rollouts/ended", "rollouts/repeated", "rollouts/cut"],
                "nats per byte": ["rollouts/student_nats_per_byte", *of_teachers],
                "seconds of writing": ["rollouts/seconds"],
                "tokens written per second": ["rollouts/tokens_per_second"],
            }
        }

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        is_on = "rollouts" in step_kinds(distill_module(pl_module, self)) and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._has_tables = is_on and takes_tables(trainer)
        self._next_table = 0
        self._begin()

    def _begin(self) -> None:
        self._counts, self._seconds, self._num_steps = RolloutCounts(), 0.0, 0
        self._nats: defaultdict[str, list[Tensor]] = defaultdict(list)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = distill_module(pl_module, self)
        if step_kind(outputs) == "rollouts" and not is_accumulating(trainer):
            written = written_step(module)
            self._add(written, outputs)
            is_due = self._has_tables and trainer.is_global_zero and trainer.global_step >= self._next_table
            if is_due and written.rollouts:
                self._next_table = (trainer.global_step // self.every_n_steps + 1) * self.every_n_steps
                self._log_samples(trainer, module, written)
        # Every process has the same kinds of steps.
        if is_logged(trainer) and self._num_steps:
            self._log(trainer, module)
            self._begin()

    def _add(self, written: WrittenStep, outputs: Any) -> None:
        self._counts += RolloutCounts.from_rollouts(written.prompts, written.rollouts)
        self._seconds += written.seconds
        self._num_steps += 1
        self._nats["student_nats_per_byte"].append(outputs["student_nats_per_byte"])
        for name, nats in outputs["teacher_nats_per_byte"].items():
            self._nats[f"teacher_nats_per_byte/{name}"].append(nats)

    def _log(self, trainer: pl.Trainer, module: MultiTeacherDistillModule) -> None:
        here = torch.tensor(astuple(self._counts), device=module.device, dtype=torch.float32)
        total = cast(Tensor, trainer.strategy.reduce(here, reduce_op="sum"))
        longest = trainer.strategy.reduce(torch.tensor(self._seconds, device=module.device), reduce_op="max")
        *sums, seconds = torch.cat((total, cast(Tensor, longest)[None])).tolist()
        counts = RolloutCounts(*sums)
        # A step without a byte of text has no likelihood per byte.
        scalars: dict[str, Any] = {tag: torch.stack(values).nanmean() for tag, values in self._nats.items()}
        scalars |= counts.means
        scalars |= {"seconds": seconds / self._num_steps, "tokens_per_second": counts.num_tokens / seconds}
        module.log_dict({f"rollouts/{tag}": value for tag, value in scalars.items()})
        assert module.rollouts is not None, "on-policy steps have settings"
        self._watch.add(counts, module.rollouts.sampling.max_new_tokens)

    def _log_samples(self, trainer: pl.Trainer, module: MultiTeacherDistillModule, written: WrittenStep) -> None:
        rows: list[tuple[str, ...]] = []
        # Evenly spaced: a prompt that is sampled several times is repeated.
        num, size = min(self.num_samples, len(written.rollouts)), len(written.rollouts)
        for place in (index * size // num for index in range(num)):
            prompt, rollout, window = written.prompts[place], written.rollouts[place], written.windows[place]
            rows += rollout_rows(prompt, rollout, window, *module.vocabularies())
        log_table(trainer, "rollouts/samples", COLUMNS, rows, written.step, title=BRACKETS)

    def state_dict(self) -> dict[str, Any]:
        return self._watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._watch = LengthWatch.from_state_dict(state_dict)
