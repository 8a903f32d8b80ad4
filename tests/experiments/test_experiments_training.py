"""Runs in processes of their own: small models that train, runs that fail, a parent that is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from small_suites import ALONE, TEACHER, suite_of, taught_by
from transformers import AutoModelForCausalLM

from experiments.finished import Key, read_finished
from experiments.jobs import Job, carry_out, make_jobs, output_to, read_history
from experiments.runner import run_jobs
from xtoken_pl.cli.config_files import merge

#: A few minutes, together.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Key, Job], str]:
    """A folder where one process has run all of a suite, its jobs, and what was said of those that failed."""
    folder = tmp_path_factory.mktemp("evidence")
    fails = merge(TEACHER, {"data": {"train": {"path": "nowhere.jsonl"}}})
    configs = {"alone": ALONE, "fails": fails, "teacher": TEACHER, "last": taught_by("small/fails")}
    jobs = make_jobs(suite_of({**configs, "student": taught_by("small/teacher")}), folder)
    with pytest.raises(RuntimeError) as failed:
        run_jobs(jobs, folder, num_processes=1)
    return folder, jobs, str(failed.value)


def test_small_models_learn_from_an_exported_teacher(trained: tuple[Path, dict[Key, Job], str]) -> None:
    folder, jobs, _ = trained
    finished = read_finished(folder, {key: job.settings for key, job in jobs.items()})
    assert [key[1] for key in finished.runs] == ["alone", "teacher", "student"]
    student = finished.runs["small", "student", 0]
    assert student.history["val/bits_per_byte"] == [(2, student.metrics["val/bits_per_byte"])]
    assert "val/kd/d" in student.metrics
    assert "val/kd/d" not in finished.runs["small", "alone", 0].metrics
    for key in finished.runs:
        output = (jobs[key].run_folder / "output.txt").read_text()
        assert "Seed set to 0" in output  # by Lightning, on the stream that it found
        assert "`max_steps=2` reached" in output
    assert "teacher 'd': ProjectionKL" in (jobs["small", "student", 0].run_folder / "output.txt").read_text()
    teacher = AutoModelForCausalLM.from_pretrained(jobs["small", "teacher", 0].run_folder / "export")
    assert teacher.config.num_hidden_layers == 3


def test_runs_of_one_seed_begin_with_the_same_weights_and_see_the_same_lines_whatever_teaches_them(
    trained: tuple[Path, dict[Key, Job], str],
) -> None:
    folder, *_ = trained
    monitor = {"class_path": "xtoken_pl.callbacks.TeacherMonitor"}
    still = {"model": {"optimizer": {"learning_rate": 1e-20}}, "trainer": {"max_steps": 3, "callbacks": [monitor]}}
    learned = {"model": {"teachers": {"d": {"learn_projection": True}}}}
    byte_prefix = {"model": {"teachers": {"d": {"loss": {"class_path": "xtoken_pl.BytePrefixKL"}}}}}
    taught = merge(taught_by("small/teacher"), still)
    configs = {"alone": merge(ALONE, still), "pkl": taught}
    configs |= {"learned": merge(taught, learned), "byte_prefix": merge(taught, byte_prefix)}
    jobs = make_jobs(suite_of({"teacher": TEACHER, **configs}), folder)
    seen = {}
    for name in configs:
        job = jobs["small", name, 0]
        carry_out(job)
        seen[name] = [value for _, value in read_history(job.run_folder / "log" / "metrics.csv")["train/ce"]]
    assert len({*seen["alone"]}) == 3  # every step has lines of its own
    for name in configs:
        assert seen[name] == pytest.approx(seen["alone"], rel=1e-6)


def test_failed_runs_are_named_with_an_output_that_says_where(trained: tuple[Path, dict[Key, Job], str]) -> None:
    _, jobs, failed = trained
    folders = {key[1]: job.run_folder for key, job in jobs.items()}
    assert failed.startswith("2 of 5 runs failed; the same command tries them again:")
    assert f"(see {folders['fails']}/output.txt)" in failed
    assert re.search(r"small/fails/0: UserError: .*nowhere\.jsonl", failed)
    assert "small/last/0: needs a run that failed" in failed
    output = (folders["fails"] / "output.txt").read_text()
    assert "Traceback" in output
    assert "nowhere.jsonl" in output
    assert not folders["last"].exists()


def test_a_run_does_not_depend_on_what_its_process_did_before(trained: tuple[Path, dict[Key, Job], str]) -> None:
    folder, jobs, _ = trained
    key = "small", "teacher", 0
    before = read_finished(folder).runs[key].metrics
    left_over = jobs[key].run_folder / "of_a_run_that_was_cut_off.txt"
    left_over.write_text("")
    assert carry_out(jobs[key]).metrics == pytest.approx(before, rel=1e-6)
    assert not left_over.exists()


@pytest.mark.parametrize(
    ("last", "at_least", "refused"),
    [
        ("0.5", {}, None),
        ("0.5", {"val/ce": 0.5}, None),
        ("0.5", {"val/ce": 0.6}, "val/ce must reach 0.6, got 0.500; train it longer"),
        ("nan", {}, "must be finite, got nan for 'val/ce'"),
        ("inf", {}, "must be finite, got inf for 'val/ce'"),
    ],
)
def test_a_run_fails_whose_metrics_end_as_no_numbers_or_below_what_it_has_to_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, at_least: dict[str, float], refused: str | None
) -> None:
    job = Job(("small", "alone", 0), "", (), tmp_path / "run", {}, at_least)

    def train(arguments: list[str]) -> None:
        (tmp_path / "run" / "log").mkdir()
        (tmp_path / "run" / "log" / "metrics.csv").write_text(f"epoch,step,val/ce\n0,0,nan\n0,1,{last}\n")

    monkeypatch.setattr("xtoken_pl.cli.main", train)
    if refused is None:
        assert carry_out(job).metrics == {"val/ce": 0.5}
    else:
        with pytest.raises(ValueError, match=refused):
            carry_out(job)


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The quick suite, which takes minutes; its output is a pipe that every process of it holds open."""
    arguments = ["run", "--suites", "[quick]", "--folder", str(tmp_path), "--num_processes", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_killed_parent_leaves_no_workers(started: subprocess.Popen[bytes], tmp_path: Path) -> None:
    wait_for(lambda: [*tmp_path.glob("quick/*/*/output.txt")] or started.poll() is not None, seconds=600)
    assert started.poll() is None
    started.kill()
    started.communicate(timeout=600)  # ends with the last process that holds the pipe


# Output


def test_all_that_a_process_writes_goes_to_the_file_until_the_end_or_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "output.txt"
    with capfd.disabled(), output_to(tmp_path / "around.txt"):
        print("before", flush=True)
        with suppress(KeyError), output_to(path):
            print("by print")
            print("as an error", file=sys.stderr)
            os.system("echo by a child")
            raise KeyError
        print("after")
        print("error after", file=sys.stderr)
    assert sorted(path.read_text().splitlines()) == ["as an error", "by a child", "by print"]
    assert sorted((tmp_path / "around.txt").read_text().splitlines()) == ["after", "before", "error after"]


def test_history_has_the_values_of_every_tag_by_steps_done(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,a,b/c\n0,49,1.5,\n0,49,,0.25\n1,99,-2,\n")
    assert read_history(path) == {"a": [(50, 1.5), (100, -2.0)], "b/c": [(50, 0.25)]}
