"""What the monitors of alignment, W and throughput log, which charts show it, and that no step waits for them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from asks_the_device import AsksTheDevice
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from logged import scalars
from small_models import TEXTS, packing_tokenizer, reversing_tokenizer, splitting_tokenizer, write_model
from torch.utils.data import DataLoader

from xtoken_pl import MultiTeacherDistillModule, OptimizerRecipe, ProjectionKL, Student, Teacher, TokenKL
from xtoken_pl.batch import DistillBatch
from xtoken_pl.callbacks import AlignmentMonitor, ProjectionMonitor, TeacherMonitor, ThroughputMonitor
from xtoken_pl.callbacks.alignment_monitor import count_spans
from xtoken_pl.callbacks.charts import Charts, Monitor, collect_charts, custom_scalars_layout
from xtoken_pl.callbacks.clocks import PassClock, WaitingClock, pause_clock
from xtoken_pl.cli.dashboard import read_charts
from xtoken_pl.data import Windower, collate
from xtoken_pl.projection.statistics import row_distance, row_entropy
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    tokenizers = {"packs": packing_tokenizer(), "splits": splitting_tokenizer(), "reverses": reversing_tokenizer()}
    return {name: write_model(root / name, tokenizer) for name, tokenizer in tokenizers.items()}


def make_module(folders: dict[str, str]) -> MultiTeacherDistillModule:
    """W is learned of one teacher, fixed of another, and a third one has none."""
    teachers = {
        "splits": Teacher(model=folders["splits"], loss=ProjectionKL(), learn_projection=True),
        "reverses": Teacher(model=folders["reverses"], loss=ProjectionKL()),
        "same": Teacher(model=folders["packs"], loss=TokenKL()),
    }
    recipe = OptimizerRecipe(learning_rate=1e-3, warmup_fraction=0.0)
    return MultiTeacherDistillModule(Student(model=folders["packs"]), teachers, optimizer=recipe)


def batches(module: MultiTeacherDistillModule, num: int) -> list[DistillBatch]:
    columns = Windower(module.student_vocabulary, module.teacher_vocabularies, 40)([*TEXTS[:4]])
    rows = [{key: column[index] for key, column in columns.items()} for index in range(2 * num)]
    return [collate(rows[start : start + 2], list(module.teachers)) for start in range(0, 2 * num, 2)]


class Finished:
    """A run of four steps of two micro-batches, of which every other step is logged."""

    def __init__(self, folders: dict[str, str], root: Path) -> None:
        self.module = make_module(folders)
        self.module.setup("fit")
        self.batches = batches(self.module, 8)
        logger = TensorBoardLogger(root, name="", version="run")
        self.trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=4,
            log_every_n_steps=2,
            accumulate_grad_batches=2,
            logger=logger,
            callbacks=[AlignmentMonitor(), TeacherMonitor(), ProjectionMonitor(), ThroughputMonitor()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        self.trainer.fit(self.module, DataLoader(cast(Any, self.batches), batch_size=None, num_workers=0))
        self.folder = root / "run"
        self.scalars = scalars(self.folder)

    def charts(self) -> Charts:
        return collect_charts(cast(Any, self.trainer).callbacks, self.module)


@pytest.fixture(scope="module")
def finished(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(folders, tmp_path_factory.mktemp("runs"))


# Alignment -----------------------------------------------------------------------------------------------------------


def test_shares_of_spans_are_those_of_a_slow_count(finished: Finished) -> None:
    logged = [finished.batches[3], finished.batches[7]]  # the last micro-batches of the second step and the fourth
    some: set[str] = set()
    for name in ("splits", "reverses", "same"):
        for place, batch in enumerate(logged):
            spans = batch.teachers[name].spans
            pairs = list(zip(spans.student_length.tolist(), spans.teacher_length.tolist(), strict=True))
            counts = {
                "one_to_many": sum(s == 1 and t > 1 for s, t in pairs),
                "many_to_one": sum(s > 1 and t == 1 for s, t in pairs),
                "many_to_many": sum(s > 1 and t > 1 for s, t in pairs),
            }
            assert count_spans(spans).tolist() == [len(pairs), *counts.values()]
            some |= {kind for kind, count in counts.items() if count}
            for kind, count in counts.items():
                assert finished.scalars[f"train/{kind}/{name}"][place] == pytest.approx(count / len(pairs))
            per_token = len(pairs) / len(batch.student.labels)
            assert finished.scalars[f"train/spans_per_token/{name}"][place] == pytest.approx(per_token)
    assert len(some) == 3  # otherwise the texts would not test what they are for


def test_a_teacher_with_the_students_tokenizer_has_spans_of_one_token_only(finished: Finished) -> None:
    assert finished.scalars["train/spans_per_token/same"] == [1, 1]
    assert finished.scalars["train/many_to_many/same"] == [0, 0]


# W -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "bits"),
    [([1, 0, 0, 0], 0), ([0.5, 0.5, 0, 0], 1), ([0.25] * 4, 2), ([0, 0, 0, 0], 0), ([0.75, 0.25, 0, 0], 0.8112781)],
)
def test_entropy_of_a_row_is_the_closed_form(row: list[float], bits: float) -> None:
    assert row_entropy(torch.tensor([row, [1.0, 0, 0, 0]])).tolist() == pytest.approx([bits, 0])


def test_distance_of_rows_is_the_weight_that_has_moved() -> None:
    start = torch.tensor([[0.9, 0.1], [1.0, 0.0], [0.5, 0.5]])
    end = torch.tensor([[0.9, 0.1], [0.0, 1.0], [0.75, 0.25]])
    assert row_distance(start, end).tolist() == pytest.approx([0, 1, 0.25])


def test_entropy_of_w_is_that_of_its_rows_of_several_tokens(finished: Finished) -> None:
    rows = cast(ProjectionKL, finished.module.losses["reverses"]).initial_projection
    assert rows is not None
    several = [row for row in rows.weights.tolist() if sum(weight > 0 for weight in row) > 1]
    bits = [-sum(weight * math.log2(weight) for weight in row if weight) for row in several]
    assert finished.scalars["projection/entropy/reverses"] == pytest.approx([sum(bits) / len(bits)])  # once


def test_a_learned_w_begins_where_it_is_and_moves(finished: Finished) -> None:
    moved, most = (finished.scalars[f"projection/{tag}/splits"] for tag in ("moved", "moved_most"))
    assert moved[0] == pytest.approx(0, abs=1e-6)
    assert moved[0] < moved[1] < moved[2] <= 1
    assert all(mean <= highest <= 1 for mean, highest in zip(moved, most, strict=True))
    before, after = finished.module.losses["splits"].initial_projection, finished.module.learned_projections()["splits"]
    distances = (before.weights - after.weights).abs().sum(1) / 2
    assert most[-1] == pytest.approx(distances.max().item(), rel=1e-4)
    assert moved[-1] == pytest.approx(distances[(before.weights > 0).sum(1) > 1].mean().item(), rel=1e-4)
    assert len(finished.scalars["projection/entropy/splits"]) == 3


def test_fixed_w_and_losses_without_one_have_not_moved(finished: Finished) -> None:
    tags = {tag for tag in finished.scalars if tag.startswith("projection/")}
    assert {tag for tag in tags if "moved" in tag} == {"projection/moved/splits", "projection/moved_most/splits"}
    assert not any(tag.endswith("/same") for tag in tags)


# Throughput ----------------------------------------------------------------------------------------------------------


def test_shares_of_the_time_are_shares(finished: Finished) -> None:
    shares = [finished.scalars[f"throughput/teacher_share/{name}"] for name in ("splits", "reverses", "same")]
    assert all(len(values) == 2 and all(0 < value < 1 for value in values) for values in shares)
    waiting = finished.scalars["throughput/waiting_share"]
    assert all(0 < sum(values) < 1 for values in zip(waiting, *shares, strict=True))


def test_tokens_per_second_are_the_tokens_of_the_steps(finished: Finished) -> None:
    for place in range(2):
        tokens = sum(int(batch.student.attention_mask.sum()) for batch in finished.batches[4 * place : 4 * place + 4])
        speed, seconds = (finished.scalars[f"throughput/{t}"][place] for t in ("tokens_per_second", "seconds_per_step"))
        assert speed * 2 * seconds == pytest.approx(tokens, rel=1e-5)
    assert all(0.05 < gigabytes < 1000 for gigabytes in finished.scalars["throughput/peak_memory"])


def test_after_training_nothing_is_timed_any_more(finished: Finished) -> None:
    assert isinstance(cast(Any, finished.trainer).profiler, PassThroughProfiler)
    for teacher in finished.module.loaded_teachers.values():
        assert type(teacher.around()).__name__ == "nullcontext"


class Clock:
    """Stands for `perf_counter`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in ("throughput_monitor", "clocks"):
            monkeypatch.setattr(f"xtoken_pl.callbacks.{module}.perf_counter", lambda: self.now)


def test_every_second_is_counted_where_it_belongs(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step: 1 s for the batch, 2 s and 0.5 s for two teachers, 4.5 s for the rest; a validation of 50 s between.

    A benchmark of 30 s runs behind the second step, before it is logged.
    """
    module, clock, monitor = finished.module, Clock(monkeypatch), ThroughputMonitor()
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(module, "log_dict", logged.update)
    trainer: Any = SimpleNamespace(
        profiler=PassThroughProfiler(),
        global_step=0,
        log_every_n_steps=2,
        world_size=1,
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
    )
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
    teach("reverses", 40)  # what runs outside of a step is no step's
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
    clock.now += 20  # the benchmark goes on
    step(finished.batches[0])
    step(finished.batches[1])
    assert logged["throughput/seconds_per_step"].item() == pytest.approx(8)
    monitor.on_exception(trainer, module, KeyboardInterrupt())
    assert isinstance(trainer.profiler, PassThroughProfiler)


def test_the_profiler_that_was_there_hears_everything() -> None:
    heard: list[str] = []

    class Hearing(PassThroughProfiler):
        def start(self, action_name: str) -> None:
            heard.append(f"start {action_name}")

        def stop(self, action_name: str) -> None:
            heard.append(f"stop {action_name}")

    with WaitingClock(Hearing()).profile("anything"):
        pass
    assert heard == ["start anything", "stop anything"]


def test_passes_on_a_gpu_are_timed_there_and_waited_for_only_when_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With stand-ins for events: there is no GPU here."""
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


# All of them ---------------------------------------------------------------------------------------------------------


def test_charts_show_what_is_logged_and_nothing_else(finished: Finished) -> None:
    charts = finished.charts()
    assert list(charts) == ["Losses", "Teachers", "Alignment", "W", "Throughput"]  # no validation, no page for it
    drawn = [tag for page in charts.values() for tags in page.values() for tag in tags]
    assert sorted(drawn) == sorted(finished.scalars.keys() - {"epoch", "hp_metric"})


def test_one_layout_holds_the_charts_of_all_monitors(finished: Finished) -> None:
    drawn = {page: list(charts) for page, charts in read_charts(finished.folder).items()}
    assert drawn == {page: list(charts) for page, charts in finished.charts().items()}


def test_a_chart_shows_its_own_tags_only() -> None:
    layout = custom_scalars_layout({"Losses": {"KD": ["train/kd"], "of phi": ["train/kd/phi-4"]}})
    (kd,), (phi,) = (chart[1] for chart in layout["Losses"].values())
    assert [tag for tag in ("train/kd", "train/kd_scale", "train/kd/phi") if re.match(kd, tag)] == ["train/kd"]
    assert [tag for tag in ("train/kd/phi-4", "train/kd/phi-42") if re.match(phi, tag)] == ["train/kd/phi-4"]


def test_any_callback_adds_charts_and_those_without_a_curve_are_left_out(finished: Finished) -> None:
    class Own(pl.Callback):
        def charts(self, module: MultiTeacherDistillModule) -> Charts:
            return {"Own": {"mine": ["own/a"], "empty": []}, "Losses": {"more": ["own/b"]}, "Nothing": {"empty": []}}

    class First(Monitor):
        def charts(self, module: MultiTeacherDistillModule) -> Charts:
            return {"Losses": {"KD": ["train/kd"]}}

    pages = collect_charts([Own(), First(), pl.Callback()], finished.module)
    assert pages == {"Losses": {"more": ["own/b"], "KD": ["train/kd"]}, "Own": {"mine": ["own/a"]}}
    assert list(pages) == ["Losses", "Own"]


@pytest.mark.parametrize("step", [1, 10], ids=["not logged", "logged"])
@pytest.mark.parametrize("make", [AlignmentMonitor, ProjectionMonitor, TeacherMonitor, ThroughputMonitor])
def test_a_step_never_asks_the_device_for_a_monitor(
    finished: Finished, make: Callable[[], Any], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, monitor = finished.module, make()
    trainer: Any = SimpleNamespace(
        profiler=PassThroughProfiler(),
        global_step=0,
        log_every_n_steps=10,
        loggers=[],
        world_size=1,
        strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
    )
    for name in ("log", "log_dict"):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    batch = finished.batches[0]
    outputs = cast(Any, module.training_step(batch, 0))
    monitor.on_train_start(trainer, module)
    trainer.global_step = step
    with AsksTheDevice() as watch:
        monitor.on_train_batch_start(trainer, module, batch, 0)
        monitor.on_before_backward(trainer, module, outputs["loss"])
        monitor.on_train_batch_end(trainer, module, outputs, batch, 0)
    assert watch.asked == []


@pytest.mark.parametrize("make", [AlignmentMonitor, ProjectionMonitor, ThroughputMonitor])
def test_other_modules_are_refused(make: Callable[[], Any]) -> None:
    trainer: Any = SimpleNamespace(callbacks=[monitor := make()], is_global_zero=True, loggers=[])
    with pytest.raises(UserError, match=f"{make.__name__} works with MultiTeacherDistillModule"):
        monitor.on_fit_start(trainer, pl.LightningModule())
