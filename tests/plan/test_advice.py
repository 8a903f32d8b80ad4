"""Suggested changes save as much memory as planned, the cheapest ones first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from planned import run_of, write_models

from xtoken_pl import Student
from xtoken_pl.plan.advice import Price, single_changes, way_to_fit
from xtoken_pl.plan.moments import MemoryPlan
from xtoken_pl.plan.run import Run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def test_savings_are_the_difference_of_the_planned_peaks(models: Path) -> None:
    plan = MemoryPlan.from_run(run_of(models))
    changes = single_changes(plan)
    assert [change.saves for change in changes] == sorted((change.saves for change in changes), reverse=True)
    (halved,) = (change for change in changes if change.text.startswith("data.batch_size: 4"))
    assert halved.saves == plan.peak.total - MemoryPlan.from_run(run_of(models, batch_size=4)).peak.total > 0


def test_way_to_fit_ends_below_the_limit_or_is_none(models: Path) -> None:
    plan = MemoryPlan.from_run(run_of(models, teachers={}, batch_size=4))
    limit = MemoryPlan.from_run(run_of(models, teachers={}, batch_size=1)).peak.total
    way = way_to_fit(plan, limit)
    assert way is not None
    assert way.texts
    assert way.peak <= limit
    smallest = Student(model=str(models / "tied"), activation_checkpointing=True)
    assert way_to_fit(MemoryPlan.from_run(run_of(models, student=smallest, teachers={}, batch_size=1)), 0) is None


def test_free_changes_come_first_and_more_gpus_last(models: Path) -> None:
    plan = MemoryPlan.from_run(run_of(models, teachers={}, batch_size=1))
    way = way_to_fit(
        plan, MemoryPlan.from_run(run_of(models, teachers={}, batch_size=1, precision="bf16-true")).peak.total
    )
    assert way is not None
    assert way.texts[0] == "model.student.activation_checkpointing: true"
    assert not any("fsdp2" in text for text in way.texts)


def test_a_server_is_advised_where_it_can_give_what_is_read(models: Path) -> None:
    run = run_of(models, servable=frozenset({"t"}), num_gpus=8, spread="sharded", data_parallel_size=8)
    run.teachers["t"].quantization = "4bit"
    (change,) = (change for change in single_changes(MemoryPlan.from_run(run)) if ".server: " in change.text)
    assert change.text.endswith("(and no quantization)")
    assert change.saves > 0
    assert change.price == Price.MORE_GPUS
    assert not any(".server: " in text for text in texts_of(replace(run, servable=frozenset())))
    assert not any("teachers.t" in text for text in texts_of(change.run))  # nothing of it is left here


def texts_of(run: Run) -> list[str]:
    return [change.text for change in single_changes(MemoryPlan.from_run(run))]
