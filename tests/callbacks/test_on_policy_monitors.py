"""Monitors tell on-policy steps from steps on the data, and log what was trained on in each."""

from __future__ import annotations

from itertools import repeat
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from html_tables import cells_of
from lightning.pytorch.loggers import TensorBoardLogger
from monitored_run import batches, make_module, write_models
from scripted_rollouts import OnPolicyModule, on_policy_outputs
from small_models import TEXTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from ticking_clock import Clock, trainer_without_a_run
from torch.utils.data import DataLoader

from xtoken_pl.batch import STUDENT_IDS, teacher_columns
from xtoken_pl.callbacks import AlignmentMonitor, ProjectionMonitor, RolloutMonitor, TeacherMonitor, ThroughputMonitor
from xtoken_pl.callbacks.alignment_monitor import count_windows
from xtoken_pl.callbacks.charts import collect_charts
from xtoken_pl.data import collate, whole_steps
from xtoken_pl.inspection.rollouts import COLUMNS, rollout_rows
from xtoken_pl.rollouts import Rollouts

NAMES = ("splits", "reverses", "same")
NUM_STEPS = 6


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_models(tmp_path_factory.mktemp("models"))


class Run:
    """Six steps of two batches each; every ``log_every`` of them is logged."""

    def __init__(self, models: dict[str, str], root: Path, *, share: float, log_every: int) -> None:
        self.module = cast(OnPolicyModule, make_module(models, OnPolicyModule))
        self.module.setup("fit")
        self.module.begin(Rollouts(share=share, seed=0), [text[:60] for text in TEXTS[:NUM_STEPS]])
        if share < 1:
            self.batches = list(whole_steps(batches(self.module, 2 * NUM_STEPS), repeat(2)))
        else:  # the loader's windows are empty
            window: dict[str, Any] = {column: [] for name in NAMES for column in teacher_columns(name)}
            empty = collate([window | {STUDENT_IDS: [], "loss_mask": []}] * 2, NAMES)
            self.batches = list(whole_steps([empty] * 2 * NUM_STEPS, repeat(2)))
        monitors = (AlignmentMonitor(), TeacherMonitor(), ProjectionMonitor(), ThroughputMonitor(), RolloutMonitor())
        self.trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=NUM_STEPS,
            log_every_n_steps=log_every,
            accumulate_grad_batches=2,
            logger=TensorBoardLogger(root, name="", version="run"),
            callbacks=[*monitors],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        self.trainer.fit(self.module, DataLoader(cast(Any, self.batches), batch_size=None, num_workers=0))
        self.events = EventAccumulator(str(root / "run"), size_guidance={"tensors": 0})
        self.events.Reload()
        self.scalars = {
            tag: {event.step: event.value for event in self.events.Scalars(tag)}
            for tag in self.events.Tags()["scalars"]
        }
        is_on_policy = self.module.rollouts.is_on_policy
        self.on_policy = [step for step in range(NUM_STEPS) if is_on_policy(step)]
        self.on_data = [step for step in range(NUM_STEPS) if not is_on_policy(step)]


@pytest.fixture(scope="module")
def mixed(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(models, tmp_path_factory.mktemp("mixed"), share=0.5, log_every=1)


@pytest.fixture(scope="module")
def sparse(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(models, tmp_path_factory.mktemp("sparse"), share=0.5, log_every=3)


@pytest.fixture(scope="module")
def only(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(models, tmp_path_factory.mktemp("only"), share=1, log_every=2)


# Kinds of steps --------------------------------------------------------------------------------------------------


def test_every_step_logs_under_its_own_kind_and_nothing_old_is_written_again(mixed: Run) -> None:
    assert mixed.on_policy
    assert mixed.on_data
    for tag, values in mixed.scalars.items():
        kind = tag.split("/")[0]
        if kind in ("train", "rollouts"):
            assert list(values) == (mixed.on_policy if kind == "rollouts" else mixed.on_data), tag
    assert "train/ce" in mixed.scalars
    assert not any(tag.startswith("rollouts/ce") for tag in mixed.scalars)
    # What ModelCheckpoint may monitor has the last value of both kinds.
    latest = mixed.trainer.callback_metrics
    for kind, steps in (("rollouts", mixed.on_policy), ("train", mixed.on_data)):
        assert latest[f"{kind}/loss"] == pytest.approx(mixed.scalars[f"{kind}/loss"][steps[-1]])


def test_values_of_on_policy_steps_are_those_of_their_outputs(mixed: Run) -> None:
    for step in mixed.on_policy:
        outputs = on_policy_outputs(NAMES, 1.0 + step)
        logged = {tag: values[step] for tag, values in mixed.scalars.items() if step in values}
        assert logged["rollouts/loss"] == outputs["total"]
        assert logged["rollouts/kd"] == outputs["kd"]
        for name in NAMES:
            assert logged[f"rollouts/kd/{name}"] == outputs["teacher_kd"][name]
            assert logged[f"rollouts/scale/{name}"] == 4 * outputs["alpha"][name]
            for tag in ("alpha", "span_coverage", "unmapped_mass"):
                assert logged[f"rollouts/{tag}/{name}"] == outputs[tag][name]


def test_each_kind_writes_its_last_step_since_the_log_before(sparse: Run) -> None:
    logs = (range(3), range(3, 6))
    for tag, steps in (("rollouts/loss", sparse.on_policy), ("train/loss", sparse.on_data)):
        expected = {log[-1]: max(set(log) & set(steps)) for log in logs if set(log) & set(steps)}
        assert list(sparse.scalars[tag]) == list(expected)
        if tag == "rollouts/loss":
            assert list(sparse.scalars[tag].values()) == [2 * (1 + step) for step in expected.values()]


def test_sources_of_rollouts_are_logged_apart_from_those_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, Any] = {}
    module, trainer = pl.LightningModule(), cast(Any, pl.Trainer(accelerator="cpu", logger=False))
    monkeypatch.setattr(module, "log", lambda tag, value, **_: logged.update({tag: value}))
    monkeypatch.setattr(module, "log_dict", logged.update)
    monkeypatch.setattr("xtoken_pl.callbacks.teacher_monitor.is_accumulating", lambda _: False)
    outputs = on_policy_outputs(["t"]) | {"share": {"maths": 0.5}, "source_ce": {"maths": 1.5}}
    TeacherMonitor().on_train_batch_end(trainer, module, outputs, None, 0)
    assert logged["rollouts/share/maths"] == 0.5
    assert not [tag for tag in logged if tag.startswith(("data/", "train/"))]
    logged.clear()
    TeacherMonitor().on_train_batch_end(trainer, module, outputs | {"is_rollout": False}, None, 0)
    assert (logged["data/share/maths"], logged["data/ce/maths"]) == (0.5, 1.5)
    assert not [tag for tag in logged if tag.startswith("rollouts/")]


@pytest.mark.parametrize("kind", ["mixed", "only"])
def test_charts_show_what_is_logged_and_nothing_else(kind: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(kind)
    charts = collect_charts(cast(Any, run.trainer).callbacks, run.module)
    data = ["Losses", "Teachers", "Rollouts", "Alignment"] if kind == "mixed" else ["Rollouts"]
    assert list(charts) == [*data, "W", "Throughput"]
    drawn = [tag for page in charts.values() for tags in page.values() for tag in tags]
    assert sorted(drawn) == sorted(run.scalars.keys() - {"epoch", "hp_metric"})


def test_samples_of_the_first_on_policy_step_are_shown_for_every_teacher(mixed: Run) -> None:
    (event,) = mixed.events.Tensors("rollouts/samples/text_summary")
    assert event.step == mixed.on_policy[0]
    written = mixed.module.steps[event.step]
    parts = list(zip(written.prompts, written.rollouts, written.windows, strict=True))
    expected = [row for part in parts[:4] for row in rollout_rows(*part, *mixed.module.vocabularies())]
    head, *rows = cells_of(markdown_to_safe_html(event.tensor_proto.string_val[0]))
    assert tuple(head) == COLUMNS
    assert [tuple(row) for row in rows] == expected
    assert {row[3] for row in rows} == set(NAMES)


# What was trained on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixed", "only"])
def test_kinds_of_spans_of_on_policy_steps_are_those_of_the_rollouts(kind: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(kind)
    assert run.scalars["rollouts/spans_per_token/splits"]
    for name in NAMES:
        for step in run.scalars[f"rollouts/spans_per_token/{name}"]:
            windows = run.module.steps[int(step)].windows
            spans = [window[teacher_columns(name)[1]].reshape(-1, 4).tolist() for window in windows]
            pairs = [(span[1] - span[0], span[3] - span[2]) for own in spans for span in own]
            num_tokens = sum(map(sum, (window["loss_mask"] for window in windows)))
            expected = {
                "spans_per_token": len(pairs) / num_tokens,
                "one_to_many": sum(s == 1 and t > 1 for s, t in pairs) / len(pairs),
                "many_to_one": sum(s > 1 and t == 1 for s, t in pairs) / len(pairs),
                "many_to_many": sum(s > 1 and t > 1 for s, t in pairs) / len(pairs),
            }
            found = {tag: run.scalars[f"rollouts/{tag}/{name}"][step] for tag in expected}
            assert found == pytest.approx(expected)


def test_kinds_of_spans_of_data_steps_are_those_of_their_batches(mixed: Run) -> None:
    for step in mixed.on_data:
        parts = mixed.batches[2 * step : 2 * step + 2]
        per_token = sum(len(part.teachers["splits"].spans) for part in parts) / sum(
            len(part.student.labels) for part in parts
        )
        assert mixed.scalars["train/spans_per_token/splits"][step] == pytest.approx(per_token)


@pytest.mark.parametrize("kind", ["mixed", "sparse", "only"])
def test_tokens_per_second_count_the_tokens_that_were_trained_on(kind: str, request: pytest.FixtureRequest) -> None:
    run: Run = request.getfixturevalue(kind)
    every = {"mixed": 1, "sparse": 3, "only": 2}[kind]
    for logged, speed in run.scalars["throughput/tokens_per_second"].items():
        num_tokens = 0
        for step in range(logged - every + 1, logged + 1):
            if step in run.on_policy:
                num_tokens += sum(len(window[STUDENT_IDS]) for window in run.module.steps[step].windows)
            else:
                parts = run.batches[2 * step : 2 * step + 2]
                num_tokens += sum(int(part.student.attention_mask.sum()) for part in parts)
        seconds = run.scalars["throughput/seconds_per_step"][logged] * every
        assert speed * seconds == pytest.approx(num_tokens, rel=1e-5)
        assert num_tokens > 0


def test_shares_of_the_time_add_up_to_1(mixed: Run) -> None:
    for step in range(NUM_STEPS):
        shares = {
            part: mixed.scalars[f"throughput/{part}_share"][step]
            for part in ("writing", "scoring", "learning", "waiting")
        }
        assert sum(shares.values()) == pytest.approx(1)
        of_teachers = [mixed.scalars[f"throughput/teacher_share/{name}"][step] for name in NAMES]
        assert shares["scoring"] == pytest.approx(sum(of_teachers))
        assert (shares["writing"] > 0) == (step in mixed.on_policy)
        assert (shares["scoring"] > 0) == (step in mixed.on_data)  # no teacher judges what was written by hand
        assert shares["learning"] > 0


def test_timing_of_the_writing_is_removed_after_training(mixed: Run) -> None:
    assert type(mixed.module.around_writing()).__name__ == "nullcontext"


def test_process_without_prompts_counts_no_spans(mixed: Run) -> None:
    counts = count_windows(mixed.module, [])
    some = count_windows(mixed.module, mixed.module.steps[mixed.on_policy[0]].windows)
    assert counts.shape == some.shape
    assert not counts.any()
    assert some.any()


def test_every_second_of_writing_is_counted_where_it_belongs(mixed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 1 s for the batch, 3 s to write, 2 s and 0.5 s for teachers, 1 s for servers, 1.5 s otherwise."""
    module, clock, monitor = mixed.module, Clock(monkeypatch), ThroughputMonitor()
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(module, "log_dict", logged.update)
    trainer = trainer_without_a_run(log_every_n_steps=1)
    monitor.on_train_start(trainer, module)
    with trainer.profiler.profile("[_TrainingEpochLoop].train_dataloader_next"):
        clock.now += 1
    monitor.on_train_batch_start(trainer, module, mixed.batches[0], 0)
    with module.around_writing():
        clock.now += 3
    for name, seconds in (("splits", 2), ("same", 0.5)):
        with module.loaded_teachers[name].around():
            clock.now += seconds
    with module.around_asking():
        clock.now += 1
    monitor.on_before_backward(trainer, module, torch.zeros(()))
    with module.around_writing(), module.around_asking():  # outside of a step
        clock.now += 1.5
    trainer.global_step = 1
    monitor.on_train_batch_end(trainer, module, {"is_rollout": True}, mixed.batches[0], 0)
    parts = {part: logged[f"throughput/{part}_share"].item() for part in ("waiting", "writing", "scoring", "learning")}
    assert parts == pytest.approx({"waiting": 1 / 9, "writing": 3 / 9, "scoring": 3.5 / 9, "learning": 1.5 / 9})
    num_tokens = sum(len(window[STUDENT_IDS]) for window in module.written.windows)
    assert logged["throughput/tokens_per_second"].item() == pytest.approx(num_tokens / 9)
    monitor.on_train_end(trainer, module)
