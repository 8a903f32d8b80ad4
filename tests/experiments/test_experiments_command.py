"""The commands check and report name what does not hold, and refuse folders without results."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from experiment_results import METRIC, line, write_results

import experiments.__main__ as command
from experiments import jobs as jobs_module
from experiments.finished import Finished
from experiments.jobs import make_jobs
from experiments.prepare import prepare
from experiments.suites import EVIDENCE, RECORDED, load_suites


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


def test_check_names_the_claim_that_does_not_hold_for_every_seed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {key: job.settings for key, job in make_jobs(load_suites(["quick"]), folder).items()}
    scores = {"teacher": 1.0, "ce": 0.5, "d_gold": 0.1, "d_pkl": 0.8, "d_bp": 0.9}
    lines = {
        key: line(*key, score, settings=made, metrics={METRIC: score, "numerals/accuracy": score})
        for key, made in settings.items()
        for score in [scores[key[1]]]
    }
    write_results(folder, [*lines.values()])
    command.check(str(folder))
    assert "| D | GOLD | 0.100" in capsys.readouterr().out

    last = "quick", "d_gold", 1
    for change, message in (
        ({"metrics": {METRIC: 0.5}}, "GOLD is below cross-entropy alone .*0.5"),
        ({"settings": "of another configuration"}, "quick/ce and quick/d_gold are not finished for the same seeds"),
    ):
        write_results(folder, [*({**lines, last: {**lines[last], **change}}).values()])
        with pytest.raises(SystemExit, match=f"(?s)must hold for every seed.*{message}"):
            command.check(str(folder))


def test_a_folder_without_results_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    for call in (command.check, command.report):
        with pytest.raises(ValueError, match=rf"there is no results\.jsonl in '{tmp_path}'"):
            call(str(tmp_path))
    assert not [*tmp_path.iterdir()]


def test_a_report_has_recorded_results_of_the_suites_that_are_not_run_by_default_where_the_folder_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, folder = tmp_path / "recorded", tmp_path / "folder"
    for path in (recorded, folder):
        path.mkdir()
    keys = [("addition", "ce", 0), ("addition", "ce", 1), ("addition", "ce", 2), ("losses", "ce", 0)]
    write_results(recorded, [line(*key, 0.1, settings="old" if key[2] == 2 else "same") for key in keys])
    write_results(folder, [line("addition", "ce", 1, 0.2, settings="same")])
    jobs = {key: SimpleNamespace(settings="same") for key in keys}
    shown: list[Finished] = []
    monkeypatch.setattr(command, "TARGET", recorded / "README.md")
    monkeypatch.setattr(command, "make_jobs", lambda suites, folder: jobs)
    monkeypatch.setattr(command, "write_report", lambda finished, *_: shown.append(finished))
    with pytest.warns(UserWarning, match=r"1 of the wanted runs .* addition/ce/2"):  # of other settings
        command.report(str(folder), readme=None)
    assert shown[0].metric("addition", "ce", METRIC) == {0: 0.1, 1: 0.2}
    assert not shown[0].of("losses", "ce")  # what is run by default is not taken from an earlier report


def test_suites_that_a_report_has_recorded_are_run_behind_the_others_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(command, "make_jobs", lambda suites, *_: ran.append([*suites]))
    monkeypatch.setattr(command, "run_jobs", lambda *_: None)
    command.run(folder=str(tmp_path))
    command.run(folder=str(tmp_path), all_suites=True)
    assert ran == [[*EVIDENCE], [*EVIDENCE, *RECORDED]]
