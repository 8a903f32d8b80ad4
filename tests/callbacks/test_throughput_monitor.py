"""ThroughputMonitor counts every second and token where it belongs, without waiting for the device."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from lightning.pytorch.profilers import PassThroughProfiler
from monitored_run import Finished, write_models
from ticking_clock import Clock, trainer_without_a_run

from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks import ThroughputMonitor
from xtoken_pl.callbacks.clocks import PassClock, WaitingClock, pause_clock


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(write_models(tmp_path_factory.mktemp("models")), tmp_path_factory.mktemp("runs"))


def test_shares_of_the_time_are_between_0_and_1(finished: Finished) -> None:
    shares = [finished.scalars[f"throughput/teacher_share/{name}"] for name in ("splits", "reverses", "same")]
    assert all(len(values) == 2 and all(0 < value < 1 for value in values) for values in shares)
    waiting = finished.scalars["throughput/waiting_share"]
    assert all(0 < sum(values) < 1 for values in zip(waiting, *shares, strict=True))


def test_tokens_per_second_count_the_tokens_of_the_steps(finished: Finished) -> None:
    for place in range(2):
        tokens = sum(int(batch.student.attention_mask.sum()) for batch in finished.batches[4 * place : 4 * place + 4])
        speed, seconds = (finished.scalars[f"throughput/{t}"][place] for t in ("tokens_per_second", "seconds_per_step"))
        assert speed * 2 * seconds == pytest.approx(tokens, rel=1e-5)
    assert all(0.05 < gigabytes < 1000 for gigabytes in finished.scalars["throughput/peak_memory"])


def test_timing_is_removed_after_training(finished: Finished) -> None:
    assert isinstance(cast(Any, finished.trainer).profiler, PassThroughProfiler)
    for teacher in finished.module.loaded_teachers.values():
        assert type(teacher.around()).__name__ == "nullcontext"


def test_every_second_is_counted_where_it_belongs(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 1 s for the batch, 2 s and 0.5 s for two teachers, 4.5 s for the rest.

    Between the steps there is a validation of 50 s; after the second step, before its log, a benchmark of 30 s.
    """
    module, clock, monitor = finished.module, Clock(monkeypatch), ThroughputMonitor()
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(module, "log_dict", logged.update)
    trainer = trainer_without_a_run(log_every_n_steps=2)
    fetch = "[_TrainingEpochLoop].train_dataloader_next"

    def teach(name: str, seconds: float) -> None:
        with module.loaded_teachers[name].around():
            clock.now += seconds

    def step(batch: DistillBatch) -> None:
        with trainer.profiler.profile(fetch):
            clock.now += 1
        monitor.on_train_batch_start(trainer, module, batch, 0)
        teach("splits", 2)
        teach("same", 0.5)
        monitor.on_before_backward(trainer, module, torch.zeros(()))
        clock.now += 4.5
        trainer.global_step += 1
        if trainer.global_step == 2:
            pause_clock(trainer)
            clock.now += 30
        monitor.on_train_batch_end(trainer, module, {}, batch, 0)

    monitor.on_train_start(trainer, module)
    step(finished.batches[0])
    assert not logged
    monitor.on_validation_start(trainer, module)
    teach("reverses", 40)  # a pass outside a step does not count
    clock.now += 10
    step(finished.batches[1])
    tokens = sum(int(batch.student.attention_mask.sum()) for batch in finished.batches[:2])
    values = {tag.removeprefix("throughput/"): value.item() for tag, value in logged.items()}
    assert values.pop("peak_memory") > 0
    assert values == pytest.approx(
        {
            "tokens_per_second": tokens / 16,
            "seconds_per_step": 8,
            "waiting_share": 1 / 8,
            "teacher_share/splits": 2 / 8,
            "teacher_share/reverses": 0,
            "teacher_share/same": 0.5 / 8,
        }
    )
    clock.now += 20  # the benchmark continues
    step(finished.batches[0])
    step(finished.batches[1])
    assert logged["throughput/seconds_per_step"].item() == pytest.approx(8)
    monitor.on_exception(trainer, module, KeyboardInterrupt())
    assert isinstance(trainer.profiler, PassThroughProfiler)


def test_wrapped_profiler_receives_all_calls() -> None:
    heard: list[str] = []

    class Hearing(PassThroughProfiler):
        def start(self, action_name: str) -> None:
            heard.append(f"start {action_name}")

        def stop(self, action_name: str) -> None:
            heard.append(f"stop {action_name}")

    with WaitingClock(Hearing()).profile("anything"):
        pass
    assert heard == ["start anything", "stop anything"]


def test_gpu_passes_are_timed_with_events_and_waited_for_only_when_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With fake events, so that no GPU is needed."""
    now, waited = [0.0], []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = now[0]

        def synchronize(self) -> None:
            waited.append(self.at)

        def elapsed_time(self, end: Event) -> float:
            return 1000 * (end.at - self.at)

    monkeypatch.setattr("torch.cuda.Event", Event)
    passes = PassClock(torch.device("cuda"))
    for name, seconds in (("a", 2.0), ("b", 0.5), ("a", 1.0)):
        with passes.around(name):
            now[0] += seconds
    assert not waited
    assert passes.take() == {"a": 3.0, "b": 0.5}
    assert waited == [2.0, 2.5, 3.5]
    assert passes.take() == {}
