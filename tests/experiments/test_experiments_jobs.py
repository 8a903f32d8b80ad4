"""Settings tell runs apart, and jobs come behind what they need."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_suites import TEACHER, suite_of, taught_by

from experiments import jobs as jobs_module
from experiments.jobs import Job, make_jobs
from experiments.prepare import prepare
from experiments.suites import Lines
from xtoken_pl.cli.config_files import merge


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence")
    prepare(folder)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prepared folder whose files stay as a test changes them."""
    monkeypatch.setattr(jobs_module, "prepare", lambda folder: None)
    return shutil.copytree(prepared, tmp_path / "folder")


def test_settings_change_with_the_content_of_a_file_outside_the_folder_and_not_with_its_name(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "text.txt").write_text("a text")

    def settings(name: str) -> str:
        student = merge(TAUGHT, {"data": {"train": {"path": str(tmp_path / name / "text.txt")}}})
        return jobs_of(folder, student=student)[STUDENT].settings

    before = settings("corpus")
    (tmp_path / "corpus").rename(tmp_path / "text")
    assert settings("text") == before
    append(tmp_path / "text" / "text.txt")
    assert settings("text") != before


STUDENT, TAUGHT = ("small", "student", 0), taught_by("small/teacher")


def jobs_of(folder: Path, student: dict[str, Any] = TAUGHT, teacher: dict[str, Any] = TEACHER, **change: Any) -> Any:
    suites = suite_of({"teacher": teacher, "student": student}, seeds={"student": (0, 1)})
    runs = {name: replace(run, **change) for name, run in suites["small"].runs.items()}
    return make_jobs({"small": replace(suites["small"], runs=runs)}, folder)


def other_rate(config: dict[str, Any]) -> dict[str, Any]:
    return merge(config, {"model": {"optimizer": {"learning_rate": 0.25}}})


def append(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: jobs_of(folder, student=other_rate(TAUGHT)),
        lambda folder: jobs_of(folder, teacher=other_rate(TEACHER)),
        lambda folder: jobs_of(folder, lines=(Lines("addition", 40, 0.5),)),
        lambda folder: append(folder / "models/student/config.json"),
        lambda folder: append(folder / "models/student/tokenizer.json"),
        lambda folder: append(folder / "models/teacher_splitting/config.json"),  # its teacher's
        lambda folder: append(folder / "test/addition_lines.jsonl"),
    ],
    ids=["config", "teacher's config", "lines", "model", "tokenizer", "teacher's model", "held-out lines"],
)
def test_settings_change_with_what_decides_a_run(folder: Path, change: Callable[[Path], Any]) -> None:
    before = jobs_of(folder)[STUDENT]
    after = (change(folder) or jobs_of(folder))[STUDENT]
    assert after.settings != before.settings
    assert after.run_folder != before.run_folder


def test_settings_change_with_the_seed_and_with_nothing_that_decides_no_run(folder: Path, tmp_path: Path) -> None:
    jobs = jobs_of(folder)
    # The lines of another seed are others, so that the seed itself shows where no lines are drawn.
    fixed = {"data": {"train": {"path": "${folder}/test/addition_lines.jsonl"}}}
    drawn_once = jobs_of(folder, student=merge(TAUGHT, fixed))
    for made in (jobs, drawn_once):
        assert made[STUDENT].settings != made["small", "student", 1].settings
    append(folder / "models/student/config.json")
    append(folder / "models/teacher_packing/config.json")  # of no run here
    changed = jobs_of(folder)
    assert changed["small", "teacher", 0].settings == jobs["small", "teacher", 0].settings
    named = jobs_of(folder, title="another title", baseline="teacher")
    moved = jobs_of(folder.rename(tmp_path / "elsewhere"))
    for other in (named, moved):
        assert {key: job.settings for key, job in other.items()} == {key: j.settings for key, j in changed.items()}


def test_a_job_reads_the_export_of_the_run_that_it_needs_and_comes_behind_it(folder: Path) -> None:
    configs = {"student": taught_by("small/teacher"), "goes_on": taught_by("small/student"), "teacher": TEACHER}
    jobs = make_jobs(suite_of(configs, seeds={"student": (0, 1, 2), "goes_on": (2, 1)}), folder)

    def model(key: tuple[str, str, int]) -> str:
        return jobs[key].config["model"]["teachers"]["d"]["model"]

    order = list(jobs)
    for seed in (1, 2):
        needed, only = ("small", "student", seed), ("small", "teacher", 0)
        goes_on: Job = jobs["small", "goes_on", seed]
        assert goes_on.needs == (needed,)  # of the same seed
        assert jobs[needed].needs == (only,)  # of its only one
        assert model(goes_on.key) == str(jobs[needed].run_folder / "export")
        assert model(needed) == str(jobs[only].run_folder / "export")
        assert order.index(only) < order.index(needed) < order.index(goes_on.key)
        assert goes_on.config["seed_everything"] == seed
    assert len(jobs) == 6
    assert "${" not in json.dumps([job.config for job in jobs.values()])


def test_of_other_suites_only_what_is_needed_is_run(folder: Path) -> None:
    teachers = suite_of({"teacher": TEACHER, "not_needed": TEACHER})
    suites = suite_of({"student": taught_by("small/teacher")})
    jobs = make_jobs({"students": replace(suites["small"], name="students")}, folder, {"teachers": teachers["small"]})
    assert list(jobs) == [("small", "teacher", 0), ("small", "student", 0)]


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ({"student": taught_by("teachers/splitting")}, "small/student needs teachers/splitting, .*add its suite"),
        (
            {"student": taught_by("small/teacher"), "teacher": TEACHER},
            "small/student needs small/teacher with seed 0, which is not one of its seeds",
        ),
    ],
)
def test_a_needed_run_that_is_not_there_is_named(folder: Path, configs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_jobs(suite_of(configs, seeds={"teacher": (1, 2)}), folder)
