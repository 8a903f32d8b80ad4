"""RolloutMonitor logs the texts of all on-policy steps, over all processes, and shows some of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from asks_the_device import AsksTheDevice
from inspected import vocabularies
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from scripted_rollouts import on_policy_outputs, write, write_step
from small_models import TEXTS

from xtoken_pl import Student
from xtoken_pl.callbacks import RolloutMonitor
from xtoken_pl.inspection.rollouts import COLUMNS, rollout_rows
from xtoken_pl.rollouts import Rollouts
from xtoken_pl.rollouts.written import WrittenStep
from xtoken_pl.training.module import MultiTeacherDistillModule
from xtoken_pl.utilities.errors import UserError

STUDENT, TEACHERS = vocabularies()
Reduce = Callable[..., torch.Tensor]


class Process:
    """One process that runs a monitor over steps written by hand."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, reduce: Reduce = lambda tensor, **_: tensor, **options: Any
    ) -> None:
        self.logged: list[dict[str, float]] = []
        self.tables: list[tuple[int, list[tuple[str, ...]]]] = []
        module: Any = MultiTeacherDistillModule(Student(model="unused"), kd_weight=0.0)
        module.rollouts, module.written = Rollouts(share=0.5), None
        module.vocabularies = lambda: (STUDENT, TEACHERS)
        module.log_dict = lambda values: self.logged.append({tag: float(value) for tag, value in values.items()})
        self.module, self.monitor = module, RolloutMonitor(**{"every_n_steps": 3, "num_samples": 2, **options})
        self.trainer: Any = SimpleNamespace(
            callbacks=[self.monitor],
            loggers=[TensorBoardLogger("unused")],
            fast_dev_run=False,
            is_global_zero=True,
            global_step=0,
            log_every_n_steps=2,
            fit_loop=SimpleNamespace(_should_accumulate=lambda: self.accumulates),
            strategy=SimpleNamespace(reduce=reduce),
        )
        self.accumulates = False
        monkeypatch.setattr(self.trainer.loggers[0], "_experiment", SimpleNamespace(add_custom_scalars=lambda _: None))
        monkeypatch.setattr("xtoken_pl.callbacks.rollout_monitor.log_table", self._table)
        monkeypatch.setattr(MultiTeacherDistillModule, "trained_teachers", {"split": None})
        self.monitor.on_fit_start(self.trainer, module)

    def _table(self, _: Any, tag: str, columns: Any, rows: Any, step: int, **__: Any) -> None:
        assert (tag, columns) == ("rollouts/samples", COLUMNS)
        self.tables.append((step, rows))

    def step(self, written: WrittenStep | None, outputs: dict[str, Any] | None = None) -> None:
        """Ends a step of two batches; None for one on the data."""
        self.module.written = written or self.module.written
        given = {"is_rollout": False} if written is None else outputs or on_policy_outputs(["split"])
        self.accumulates = True
        self.monitor.on_train_batch_end(self.trainer, self.module, given, None, 0)
        self.accumulates = False
        self.trainer.global_step += 1
        self.monitor.on_train_batch_end(self.trainer, self.module, given, None, 1)


def texts(num: int, first: int = 0) -> list[str]:
    return [text[:80] for text in TEXTS[first : first + num]]


def slow_means(steps: list[WrittenStep]) -> dict[str, float]:
    """Means over all rollouts of some steps, counted one by one."""
    rollouts = [rollout for step in steps for rollout in step.rollouts]
    num_again = num_grams = 0
    for rollout in rollouts:
        ids = [token for token in rollout.ids if token != STUDENT.roles["eos"]]
        grams = [ids[place : place + 4] for place in range(len(ids) - 3)]
        num_again += sum(gram in grams[:place] for place, gram in enumerate(grams))
        num_grams += len(grams)
    return {
        "rollouts/length": sum(len(rollout.ids) for rollout in rollouts) / len(rollouts),
        "rollouts/ended": sum(rollout.ids[-1] == STUDENT.roles["eos"] for rollout in rollouts) / len(rollouts),
        "rollouts/repeated": num_again / num_grams,
        "rollouts/cut": sum(prompt.is_cut for step in steps for prompt in step.prompts) / len(rollouts),
    }


def test_values_are_means_over_all_on_policy_steps_since_the_last_log(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(monkeypatch)
    first, second, third = (write_step(STUDENT, TEACHERS, texts(num, num), num) for num in (3, 2, 4))
    process.step(first, on_policy_outputs(["split"], 1.0))
    process.step(second, on_policy_outputs(["split"], 2.0))
    process.step(third, on_policy_outputs(["split"], 7.0))
    process.step(None)  # logged, and on the data
    process.step(None)
    process.step(None)
    assert len(process.logged) == 2  # nothing without an on-policy step
    for logged, steps, nats in zip(process.logged, ([first, second], [third]), ([1.0, 2.0], [7.0]), strict=True):
        seconds = sum(step.seconds for step in steps)
        num_tokens = sum(len(rollout.ids) for step in steps for rollout in step.rollouts)
        assert logged == pytest.approx(
            slow_means(steps)
            | {
                "rollouts/student_nats_per_byte": sum(5 * value for value in nats) / len(nats),
                "rollouts/teacher_nats_per_byte/split": sum(40 + value for value in nats) / len(nats),
                "rollouts/seconds": seconds / len(steps),
                "rollouts/tokens_per_second": num_tokens / seconds,
            }
        )


def test_values_are_over_all_processes_and_the_slowest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [write_step(STUDENT, TEACHERS, texts(num, 5), 0) for num in (4, 1)]
    empty = WrittenStep(1, [], [], [], 0.25)  # a process may have no prompt
    sent: list[list[torch.Tensor]] = []

    def send(tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        sent[-1].append(tensor)
        return tensor

    def gather(tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        parts = torch.stack([own.pop(0) for own in sent])
        return parts.sum(0) if reduce_op == "sum" else parts.amax(0)

    for reduce, own in ((send, steps[0]), (send, steps[1]), (gather, steps[0])):
        if reduce is send:
            sent.append([])
        process = Process(monkeypatch, reduce)
        process.step(own)
        process.step(empty)
    (logged,) = process.logged
    assert {tag: logged[tag] for tag in slow_means(steps)} == pytest.approx(slow_means(steps))
    assert logged["rollouts/seconds"] == pytest.approx((4.5 + 0.25) / 2)
    num_tokens = sum(len(rollout.ids) for step in steps for rollout in step.rollouts)
    assert logged["rollouts/tokens_per_second"] == pytest.approx(num_tokens / (4.5 + 0.25))


def test_steps_without_a_byte_of_text_do_not_hide_the_likelihoods_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    process, written = Process(monkeypatch), write_step(STUDENT, TEACHERS, texts(1))
    none = on_policy_outputs(["split"]) | {"student_nats_per_byte": torch.tensor(math.nan)}
    process.step(written, none | {"teacher_nats_per_byte": {"split": torch.tensor(math.nan)}})
    process.step(written, on_policy_outputs(["split"], 3.0))
    assert process.logged[0]["rollouts/student_nats_per_byte"] == 15
    assert process.logged[0]["rollouts/teacher_nats_per_byte/split"] == 43


def test_samples_are_shown_at_the_first_on_policy_step_of_every_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(monkeypatch)
    for step, is_on_policy in enumerate([0, 1, 1, 1, 0, 0, 0, 1, 1, 1]):
        process.step(write_step(STUDENT, TEACHERS, texts(4), step) if is_on_policy else None)
    assert [step for step, _ in process.tables] == [1, 2, 7, 8]
    written = write_step(STUDENT, TEACHERS, texts(4))
    parts = zip(written.prompts, written.rollouts, written.windows, strict=True)
    shown = [rollout_rows(*part, STUDENT, TEACHERS) for part in parts]
    assert process.tables[0][1] == [*shown[0], *shown[2]]  # two of four, evenly spaced


def test_only_the_first_process_shows_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(monkeypatch)
    process.trainer.is_global_zero = False
    process.step(write_step(STUDENT, TEACHERS, texts(2)))
    assert process.tables == []


def test_table_waits_for_a_step_in_which_the_first_process_has_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(monkeypatch)
    process.step(WrittenStep(0, [], [], [], seconds=1.0))
    process.step(write_step(STUDENT, TEACHERS, texts(2), 1))
    assert [(step, len(rows)) for step, rows in process.tables] == [(1, 2)]


def test_table_holds_fewer_rows_if_less_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(monkeypatch, num_samples=4)
    process.step(write_step(STUDENT, TEACHERS, texts(1)))
    assert [len(rows) for _, rows in process.tables] == [1]


def test_lengths_that_collapse_give_one_warning_in_a_run_and_its_resumed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(monkeypatch, every_n_steps=10_000)
    part = write(STUDENT, TEACHERS, texts(1)[0])
    many = WrittenStep(0, *([one] * 200 for one in part), seconds=1.0)  # type: ignore[arg-type]
    short = type(part[1])(part[1].ids[-1:], b"", "stop")
    empty = WrittenStep(0, many.prompts, [short] * 200, many.windows, seconds=1.0)
    for _ in range(2):
        process.step(many)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(8):
            process.step(empty)
        resumed = Process(monkeypatch)
        resumed.monitor.load_state_dict(process.monitor.state_dict())
        for _ in range(8):
            resumed.step(empty)
    assert sum("the lengths of rollouts collapse" in str(warning.message) for warning in caught) == 1


def test_steps_between_two_logs_do_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    process, written, outputs = Process(monkeypatch), write_step(STUDENT, TEACHERS, texts(3)), on_policy_outputs(["t"])
    with AsksTheDevice() as watch:
        process.step(written, outputs)
    assert watch.asked == []


@pytest.mark.parametrize("name", ["every_n_steps", "num_samples"])
def test_options_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be >= 1, got 0"):
        RolloutMonitor(**{name: 0})


def test_run_without_rollouts_has_no_charts_and_no_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    process = Process(monkeypatch)
    process.module.rollouts = None
    process.trainer.loggers = [CSVLogger(tmp_path)]  # no warning: there is nothing to show
    process.monitor.on_fit_start(process.trainer, process.module)
    assert process.monitor.charts(process.module) == {}
    process.step(None)
    process.step(None)
    assert (process.logged, process.tables) == ([], [])


def test_loggers_without_tables_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    process = Process(monkeypatch)
    process.trainer.loggers = [CSVLogger(tmp_path)]
    with pytest.warns(UserWarning, match="CSVLogger does not support tables of text"):
        process.monitor.on_fit_start(process.trainer, process.module)
    process.step(write_step(STUDENT, TEACHERS, texts(2)))
    assert process.tables == []
