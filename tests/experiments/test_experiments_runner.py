"""Jobs are carried out once, behind those they need; what fails is named, and what was cut off is done again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_suites import ALONE, TEACHER, suite_of, taught_by

import experiments.__main__ as command
from experiments import jobs as jobs_module
from experiments import runner
from experiments.finished import FinishedRun, Key, read_finished, read_lines
from experiments.jobs import Job, make_jobs
from experiments.runner import only_process, run_jobs
from xtoken_pl.cli.config_files import merge


class Desk:
    """Stands in for the pool: carries out what was submitted last when somebody waits, and writes down what it did."""

    def __init__(self, error_of: Callable[[Key], Exception | None]) -> None:
        self.error_of = error_of
        self.ran: list[str] = []
        self.most_at_a_time = 0
        self.broken = False

    def __call__(self, *_: Any, **__: Any) -> Desk:
        self.broken = False
        return self

    def shutdown(self, *, cancel_futures: bool) -> None:
        pass

    def submit(self, function: object, job: Job) -> Future[FinishedRun]:
        if self.broken:
            raise BrokenProcessPool("it takes no more")
        future: Any = Future()
        future.job = job
        return future

    def wait(self, running: dict[Any, Key], **_: Any) -> tuple[set[Any], set[Any]]:
        self.most_at_a_time = max(self.most_at_a_time, len(running))
        if not running:
            return set(), set()
        future = list(running)[-1]
        job = future.job
        self.ran.append("/".join(map(str, job.key[1:])))
        error = self.error_of(job.key)
        if error is None:
            future.set_result(carried_out(job))
            return {future}, set()
        self.broken = isinstance(error, BrokenProcessPool)
        future.set_exception(error)
        return {future}, set()


def carried_out(job: Job) -> FinishedRun:
    if "HFExport" in json.dumps(job.config):
        (job.run_folder / "export").mkdir(parents=True)
    return FinishedRun(*job.key, settings=job.settings, code="", metrics={"m": 1.0}, history={}, seconds=1.0)


def error_of(key: Key) -> Exception | None:
    return {"fails": ValueError("too bad"), "killed": BrokenProcessPool("terminated abruptly")}.get(key[1])


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk(error_of)
    monkeypatch.setattr(runner, "ProcessPoolExecutor", desk)
    monkeypatch.setattr(runner, "wait", desk.wait)
    monkeypatch.setattr(jobs_module, "prepare", lambda folder: None)
    return desk


CONFIGS = {"student": taught_by("small/teacher"), "teacher": TEACHER, "alone": ALONE}
SEEDS = {"student": (0, 1), "alone": (0, 1)}


def test_every_job_is_done_once_behind_what_it_needs_and_so_many_at_a_time(desk: Desk, tmp_path: Path) -> None:
    jobs = make_jobs(suite_of(CONFIGS, SEEDS), tmp_path)
    run_jobs(jobs, tmp_path, num_processes=2)
    assert sorted(desk.ran) == ["alone/0", "alone/1", "student/0", "student/1", "teacher/0"]
    assert desk.ran.index("teacher/0") < min(desk.ran.index("student/0"), desk.ran.index("student/1"))
    assert desk.most_at_a_time == 2
    assert {*read_finished(tmp_path).runs} == {*jobs}
    desk.ran.clear()
    run_jobs(jobs, tmp_path, num_processes=2)
    assert desk.ran == []


def test_a_changed_configuration_runs_again_beside_the_old_one(desk: Desk, tmp_path: Path) -> None:
    old = make_jobs(suite_of(CONFIGS, SEEDS), tmp_path)
    run_jobs(old, tmp_path, 1)
    desk.ran.clear()
    other = merge(CONFIGS["teacher"], {"model": {"optimizer": {"learning_rate": 0.25}}})
    new = make_jobs(suite_of({**CONFIGS, "teacher": other}, SEEDS), tmp_path)
    run_jobs(new, tmp_path, 1)
    assert desk.ran == ["teacher/0", "student/0", "student/1"]  # and those that learn from it
    for jobs in (old, new):
        assert (jobs["small", "teacher", 0].run_folder / "export").is_dir()
        assert len(read_finished(tmp_path, {key: job.settings for key, job in jobs.items()}).runs) == 5
    desk.ran.clear()
    run_jobs(old, tmp_path, 1)
    assert desk.ran == []


def test_an_export_that_is_gone_is_made_again_and_nothing_else(desk: Desk, tmp_path: Path) -> None:
    jobs = make_jobs(suite_of(CONFIGS, SEEDS), tmp_path)
    run_jobs(jobs, tmp_path, 1)
    (jobs["small", "teacher", 0].run_folder / "export").rmdir()
    desk.ran.clear()
    run_jobs(jobs, tmp_path, 1)
    assert desk.ran == ["teacher/0"]


def test_a_run_that_fails_is_named_and_those_that_need_it_are_not_run_but_all_others(
    desk: Desk, tmp_path: Path
) -> None:
    configs = {
        "fails": TEACHER,
        "student": merge(taught_by("small/fails"), {"trainer": TEACHER["trainer"]}),
        "its_student": taught_by("small/student"),
        "alone": ALONE,
    }
    jobs = make_jobs(suite_of(configs), tmp_path)
    output = re.escape(str(jobs["small", "fails", 0].run_folder / "output.txt"))
    message = rf"(?s)3 of 4 runs failed.*small/fails/0: ValueError: too bad \(see {output}\)"
    for ran in (["fails/0", "alone/0"], ["fails/0"]):  # a second call tries again
        with pytest.raises(RuntimeError, match=f"{message}.*small/its_student/0: needs a run that failed"):
            run_jobs(jobs, tmp_path, 1)
        assert desk.ran == ran
        desk.ran.clear()
    assert [*read_finished(tmp_path).runs] == [("small", "alone", 0)]


def test_a_killed_process_is_named_and_ends_all(desk: Desk, tmp_path: Path) -> None:
    configs = {
        name: merge(ALONE, {"model": {"optimizer": {"learning_rate": rate}}})  # of other settings each
        for name, rate in {"first": 0.1, "killed": 0.2, "last": 0.3}.items()
    }
    jobs = make_jobs(suite_of(configs), tmp_path)
    with pytest.raises(RuntimeError, match=r"1 of 3 runs failed.*\nsmall/killed/0: BrokenProcessPool"):
        run_jobs(jobs, tmp_path, 1)
    assert desk.ran == ["first/0", "killed/0"]


def test_the_run_of_a_line_that_was_cut_is_done_again(desk: Desk, tmp_path: Path) -> None:
    jobs = make_jobs(suite_of(CONFIGS, SEEDS), tmp_path)
    run_jobs(jobs, tmp_path, 1)
    path = tmp_path / "results.jsonl"
    whole = path.read_text().splitlines()
    path.write_text("\n".join(whole)[:-20])
    last = desk.ran[-1]
    desk.ran.clear()
    run_jobs(jobs, tmp_path, 1)
    assert desk.ran == [last]
    assert path.read_text().splitlines() == whole


def test_a_run_of_the_same_settings_takes_over_the_result_and_is_not_run(desk: Desk, tmp_path: Path) -> None:
    (small,) = suite_of({"alone": ALONE}, SEEDS).values()
    other = replace(small, name="other", runs={"same": replace(small.runs["alone"], suite="other", name="same")})
    run_jobs(make_jobs({"small": small}, tmp_path), tmp_path, 1)
    desk.ran.clear()
    jobs = make_jobs({"other": other}, tmp_path)
    for _ in range(2):  # and takes it over once
        run_jobs(jobs, tmp_path, 1)
        assert desk.ran == []
        lines = read_lines(tmp_path)
        assert [done.key for done in lines[2:]] == [("other", "same", 0), ("other", "same", 1)]
        for taken, done in zip(lines[2:], lines[:2], strict=True):
            assert replace(taken, suite="small", run="alone") == done


def test_a_run_whose_model_others_read_is_run_under_each_of_its_names(desk: Desk, tmp_path: Path) -> None:
    jobs = make_jobs(suite_of({"teacher": TEACHER, "same": TEACHER}), tmp_path)
    run_jobs(jobs, tmp_path, 1)
    assert desk.ran == ["teacher/0", "same/0"]
    assert all((job.run_folder / "export").is_dir() for job in jobs.values())


def test_a_second_process_is_refused_and_the_folder_is_free_again_after_the_first(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "evidence"
    monkeypatch.setattr(command, "load_suites", lambda names=None: suite_of({"alone": ALONE}))
    with only_process(folder), pytest.raises(RuntimeError, match=f"another process runs in {folder}; wait"):
        command.run(folder=str(folder), num_processes=1)
    assert [path.name for path in folder.iterdir()] == ["lock"]  # what the other process reads is not written, either
    command.run(folder=str(folder), num_processes=1)
    assert desk.ran == ["alone/0"]


def test_a_result_that_does_not_reach_what_it_now_has_to_is_not_taken(desk: Desk, tmp_path: Path) -> None:
    (small,) = suite_of({"alone": ALONE}).values()
    run_jobs(make_jobs({"small": small}, tmp_path), tmp_path, 1)
    (done,) = read_finished(tmp_path).runs.values()
    (tag, value), *_ = done.metrics.items()
    desk.ran.clear()
    for least, ran in ((value, []), (value + 1, ["alone/0"])):
        asked = replace(small, runs={"alone": replace(small.runs["alone"], at_least={tag: least})})
        run_jobs(make_jobs({"small": asked}, tmp_path), tmp_path, 1)
        assert desk.ran == ran
