"""Monitors of alignment and W log correct values, charts show them, and no step waits for the device."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from asks_the_device import AsksTheDevice
from lightning.pytorch.profilers import PassThroughProfiler
from monitored_run import Finished, write_models

from xtoken_pl import MultiTeacherDistillModule, ProjectionKL
from xtoken_pl.callbacks import AlignmentMonitor, ProjectionMonitor, TeacherMonitor, ThroughputMonitor
from xtoken_pl.callbacks.alignment_monitor import count_spans
from xtoken_pl.callbacks.charts import Charts, Monitor, collect_charts, custom_scalars_layout
from xtoken_pl.cli.dashboard import read_charts
from xtoken_pl.projection.statistics import row_distance, row_entropy
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(write_models(tmp_path_factory.mktemp("models")), tmp_path_factory.mktemp("runs"))


# Alignment -----------------------------------------------------------------------------------------------------------


def test_shares_of_spans_match_a_slow_count(finished: Finished) -> None:
    logged = [finished.batches[2:4], finished.batches[6:8]]  # of the second step and the fourth
    some: set[str] = set()
    for name in ("splits", "reverses", "same"):
        for place, step in enumerate(logged):
            of_batches = [batch.teachers[name].spans for batch in step]
            lengths = [(spans.student_length.tolist(), spans.teacher_length.tolist()) for spans in of_batches]
            pairs = [pair for student, teacher in lengths for pair in zip(student, teacher, strict=True)]
            counts = {
                "one_to_many": sum(s == 1 and t > 1 for s, t in pairs),
                "many_to_one": sum(s > 1 and t == 1 for s, t in pairs),
                "many_to_many": sum(s > 1 and t > 1 for s, t in pairs),
            }
            assert torch.stack([count_spans(spans) for spans in of_batches]).sum(0).tolist() == [
                len(pairs),
                *counts.values(),
            ]
            some |= {kind for kind, count in counts.items() if count}
            for kind, count in counts.items():
                assert finished.scalars[f"train/{kind}/{name}"][place] == pytest.approx(count / len(pairs))
            per_token = len(pairs) / sum(len(batch.student.labels) for batch in step)
            assert finished.scalars[f"train/spans_per_token/{name}"][place] == pytest.approx(per_token)
    assert len(some) == 3  # the texts must have all kinds of spans


def test_teacher_with_the_students_tokenizer_has_one_to_one_spans_only(finished: Finished) -> None:
    assert finished.scalars["train/spans_per_token/same"] == [1, 1]
    assert finished.scalars["train/many_to_many/same"] == [0, 0]


# W -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "bits"),
    [([1, 0, 0, 0], 0), ([0.5, 0.5, 0, 0], 1), ([0.25] * 4, 2), ([0, 0, 0, 0], 0), ([0.75, 0.25, 0, 0], 0.8112781)],
)
def test_entropy_of_a_row_equals_the_closed_form(row: list[float], bits: float) -> None:
    assert row_entropy(torch.tensor([row, [1.0, 0, 0, 0]])).tolist() == pytest.approx([bits, 0])


def test_distance_of_rows_is_the_weight_moved() -> None:
    start = torch.tensor([[0.9, 0.1], [1.0, 0.0], [0.5, 0.5]])
    end = torch.tensor([[0.9, 0.1], [0.0, 1.0], [0.75, 0.25]])
    assert row_distance(start, end).tolist() == pytest.approx([0, 1, 0.25])


def test_entropy_of_w_is_over_rows_with_several_tokens(finished: Finished) -> None:
    rows = cast(ProjectionKL, finished.module.losses["reverses"]).initial_projection
    assert rows is not None
    several = [row for row in rows.weights.tolist() if sum(weight > 0 for weight in row) > 1]
    bits = [-sum(weight * math.log2(weight) for weight in row if weight) for row in several]
    assert finished.scalars["projection/entropy/reverses"] == pytest.approx([sum(bits) / len(bits)])  # once


def test_learned_w_moves_from_its_initial_values(finished: Finished) -> None:
    moved, most = (finished.scalars[f"projection/{tag}/splits"] for tag in ("moved", "moved_most"))
    assert moved[0] == pytest.approx(0, abs=1e-6)
    assert moved[0] < moved[1] < moved[2] <= 1
    assert all(mean <= highest <= 1 for mean, highest in zip(moved, most, strict=True))
    before, after = finished.module.losses["splits"].initial_projection, finished.module.learned_projections()["splits"]
    distances = (before.weights - after.weights).abs().sum(1) / 2
    assert most[-1] == pytest.approx(distances.max().item(), rel=1e-4)
    assert moved[-1] == pytest.approx(distances[(before.weights > 0).sum(1) > 1].mean().item(), rel=1e-4)
    assert len(finished.scalars["projection/entropy/splits"]) == 3


def test_movement_is_logged_only_for_a_learned_w(finished: Finished) -> None:
    tags = {tag for tag in finished.scalars if tag.startswith("projection/")}
    assert {tag for tag in tags if "moved" in tag} == {"projection/moved/splits", "projection/moved_most/splits"}
    assert not any(tag.endswith("/same") for tag in tags)


# Charts --------------------------------------------------------------------------------------------------------------


def test_charts_show_what_is_logged_and_nothing_else(finished: Finished) -> None:
    charts = finished.charts()
    assert list(charts) == ["Losses", "Teachers", "Alignment", "W", "Throughput"]  # no page without validation
    drawn = [tag for page in charts.values() for tags in page.values() for tag in tags]
    assert sorted(drawn) == sorted(finished.scalars.keys() - {"epoch", "hp_metric"})


def test_one_layout_holds_the_charts_of_all_monitors(finished: Finished) -> None:
    drawn = {page: list(charts) for page, charts in read_charts(finished.folder).items()}
    assert drawn == {page: list(charts) for page, charts in finished.charts().items()}


def test_chart_patterns_match_only_their_own_tags() -> None:
    layout = custom_scalars_layout({"Losses": {"KD": ["train/kd"], "of phi": ["train/kd/phi-4"]}})
    (kd,), (phi,) = (chart[1] for chart in layout["Losses"].values())
    assert [tag for tag in ("train/kd", "train/kd_scale", "train/kd/phi") if re.match(kd, tag)] == ["train/kd"]
    assert [tag for tag in ("train/kd/phi-4", "train/kd/phi-42") if re.match(phi, tag)] == ["train/kd/phi-4"]


def test_any_callback_can_add_charts_and_empty_ones_are_dropped(finished: Finished) -> None:
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
def test_monitors_never_synchronize_with_the_device_in_a_step(
    finished: Finished, make: Callable[[], Any], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, monitor = finished.module, make()
    trainer: Any = SimpleNamespace(
        profiler=PassThroughProfiler(),
        global_step=0,
        log_every_n_steps=10,
        loggers=[],
        fit_loop=SimpleNamespace(_should_accumulate=lambda: False),
        world_size=1,
        distributed_sampler_kwargs=None,
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
