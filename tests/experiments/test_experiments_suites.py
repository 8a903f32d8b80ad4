"""Suites say what they mean, shipped ones are accepted by the command line, and settings tell runs apart."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_results import METRIC, line, write_results
from small_suites import TEACHER, suite_of, taught_by

import experiments.__main__ as command
from experiments import jobs as jobs_module
from experiments import suites as suites_module
from experiments.claims import CLAIMS, QUICK_CLAIMS, ZERO, load_claims, unknown_runs
from experiments.finished import Key
from experiments.jobs import Job, make_jobs
from experiments.prepare import prepare
from experiments.suites import EVIDENCE, Lines, Suite, load_suites
from xtoken_pl.cli import main
from xtoken_pl.cli.config_files import merge
from xtoken_pl.cli.usage import UsageError

# Files


@pytest.fixture
def write_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Suite]:
    monkeypatch.setattr(suites_module, "ROOT", tmp_path / "experiments")
    folder = tmp_path / "experiments" / "suites"
    folder.mkdir(parents=True)
    for name, content in {"base": {"a": 1, "b": {"c": 1, "d": 1}}, "extra": {"b": {"c": 2, "e": [2]}}}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))

    def write(runs: dict[str, Any], **settings: Any) -> Suite:
        content = {"title": "T", "seeds": [0, 1], "config": ["base.yaml"], "metrics": {"m": "M"}, "runs": runs}
        (folder / "some.yaml").write_text(yaml.safe_dump({**content, **settings}))
        return load_suites(["some"])["some"]

    return write


def test_a_run_has_what_its_suite_says_unless_it_says_otherwise(write_suite: Callable[..., Suite]) -> None:
    lines = [{"task": "letters", "number": 5, "random_share": 0.5}]
    own = {"seeds": [7], "lines": lines, "baseline": "", "config": {"b": {"d": 3}, "a": 3}, "configs": ["extra.yaml"]}
    shared = [{"task": "addition", "number": 9, "random_share": 0.1}]
    runs = write_suite({"ce": None, "own": own}, baseline="ce", lines=shared).runs
    assert (runs["ce"].seeds, runs["ce"].baseline, runs["ce"].title) == ((0, 1), "ce", "ce")
    assert runs["ce"].lines == (Lines("addition", 9, 0.1),)
    assert runs["ce"].config == {"a": 1, "b": {"c": 1, "d": 1}}
    assert (runs["own"].seeds, runs["own"].baseline) == ((7,), "")
    assert runs["own"].lines == (Lines("letters", 5, 0.5),)
    assert runs["own"].config == {"a": 3, "b": {"c": 2, "d": 3, "e": [2]}}  # its own over its files over the suite's


def test_variants_are_run_of_every_run_each_with_its_own_change(write_suite: Callable[..., Suite]) -> None:
    variants = {"low": {"b": {"c": 7}}, "high": {"b": {"c": 8}}}
    given = {"ce": None, "kd": {"title": "KD", "teacher": "D", "config": {"b": {"c": 5, "d": 6}}}}
    runs = write_suite(given, variants=variants).runs
    assert {name: (run.title, run.config["b"]) for name, run in runs.items()} == {
        "ce_low": ("ce, low", {"c": 7, "d": 1}),
        "ce_high": ("ce, high", {"c": 8, "d": 1}),
        "kd_low": ("KD, low", {"c": 7, "d": 6}),
        "kd_high": ("KD, high", {"c": 8, "d": 6}),
    }
    assert {run.teacher for run in runs.values()} == {"", "D"}


@pytest.mark.parametrize(
    ("runs", "settings", "message"),
    [
        ({"ce": {"baselin": "ce"}}, {}, r"some\.yaml: ce has no setting baselin"),
        ({"ce": None}, {"baselines": "ce"}, r"some\.yaml has no setting baselines; there are"),
        ({"ce": {"baseline": "cf"}}, {}, r"some\.yaml: the baseline of ce must be one of its runs, got 'cf'"),
    ],
)
def test_a_mistake_in_a_suite_is_named(
    write_suite: Callable[..., Suite], runs: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_suite(runs, **settings)


def test_an_unknown_suite_is_named() -> None:
    with pytest.raises(ValueError, match=r"one of addition, .*, got nothing, summs"):
        load_suites(["addition", "summs", "nothing"])
    assert list(load_suites(["words", "addition"])) == ["words", "addition"]


# What is shipped


def test_every_shipped_suite_loads_and_has_the_runs_and_metrics_of_the_claims() -> None:
    suites = load_suites()
    assert {*suites} == {*EVIDENCE, "quick", "words"}
    for path in (CLAIMS, QUICK_CLAIMS):
        assert unknown_runs(load_claims(path), suites) == []
        for claim in load_claims(path):
            named = {run.split("/")[0] for pair in claim.comparisons for run in pair if run != ZERO}
            assert all(claim.metric in suites[suite].metrics for suite in named)


def settings_of(value: Any, path: str = "") -> set[str]:
    """The settings that a configuration names, teachers under one name, and its classes."""
    if isinstance(value, dict):
        own = {value["class_path"]} if "class_path" in value else set()
        keys = {key: "NAME" if path == "model.teachers" else key for key in value}
        return own.union(*(settings_of(below, f"{path}.{keys[key]}".strip(".")) for key, below in value.items()))
    if isinstance(value, list):
        return set().union(*(settings_of(entry, path) for entry in value))
    return {path}


def is_accepted(config: dict[str, Any], path: Path) -> bool:
    path.write_text(yaml.safe_dump(config))
    with pytest.raises((SystemExit, UsageError)) as stopped:
        main(["fit", "--config", str(path), "--print_config"])
    return isinstance(stopped.value, SystemExit) and stopped.value.code == 0


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Key, Job]:
    """The jobs of all suites; neither files nor fingerprints are asked for."""
    monkeypatch.setattr(jobs_module, "prepare", lambda folder: None)
    monkeypatch.setattr(jobs_module, "write_lines", lambda lines, seed, folder: folder / "lines.jsonl")
    return make_jobs(load_suites(), tmp_path)


def test_configurations_with_every_setting_and_class_that_is_used_are_accepted_by_the_command_line(
    shipped: dict[Key, Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not [key for key, job in shipped.items() if "${" in json.dumps(job.config)]
    missing = set().union(*(settings_of(job.config) for job in shipped.values()))
    assert {"xtoken_pl.TokenKL", "xtoken_pl.ConfidenceWeighting", "xtoken_pl.callbacks.HFExport"} <= missing
    assert {"model.teachers.NAME.learn_projection", "model.weighting.init_args.scope"} <= missing
    while missing:  # all of them would take a minute
        key, job = max(shipped.items(), key=lambda item: len(settings_of(item[1].config) & missing))
        assert is_accepted(job.config, tmp_path / "config.yaml"), (key, capsys.readouterr().err)
        missing -= settings_of(job.config)
    assert not is_accepted(merge(job.config, {"trainer": {"max_step": 2}}), tmp_path / "config.yaml")


LOSSES = {"uld": "ULD", "gold": "GOLD", "hkl": "HybridKL", "pkl": "ProjectionKL", "bp": "BytePrefixKL", "kl": "TokenKL"}
NAMED = re.compile(r"(?P<teacher>[dps])_(?P<loss>[a-z]+)(?P<change>_.*)?")


def test_runs_have_the_teacher_the_loss_and_the_scaling_that_their_names_say(shipped: dict[Key, Job]) -> None:
    seen = set()
    for (suite, name, _), job in shipped.items():
        if not (named := NAMED.fullmatch(name)):
            continue
        ((teacher, given),) = job.config["model"]["teachers"].items()
        assert given["loss"]["class_path"] == f"xtoken_pl.{LOSSES[named['loss']]}", (suite, name)
        export = {"words": f"/words/teacher_{teacher}/", "quick": "/quick/teacher/"}
        assert export.get(suite, f"/addition/teacher_{teacher}/") in given["model"], (suite, name)
        assert teacher == named["teacher"]
        is_scaled = any("DynamicLossScaling" in entry["class_path"] for entry in job.config["trainer"]["callbacks"])
        assert is_scaled == (not re.search("fixed|common", name)), (suite, name)
        seen.add((suite, named["teacher"], named["loss"]))
    assert len(seen) == 33


def test_runs_differ_from_their_baselines_in_the_loss_alone(shipped: dict[Key, Job]) -> None:
    """Lines, steps, the student and the learning rate are those of the baseline, and so is the seed."""
    suites, compared = load_suites(), 0
    for key, job in shipped.items():
        baseline = suites[key[0]].runs[key[1]].baseline
        if baseline in ("", key[1]):
            continue
        other = shipped[key[0], baseline, key[2]]
        if suites[key[0]].runs[key[1]].seeds == suites[key[0]].runs[baseline].seeds:
            assert without_loss(job) == without_loss(other), key
            compared += 1
    assert compared > 150


def without_loss(job: Job) -> dict[str, Any]:
    """A configuration without what a distillation loss is, how it is weighted and watched, and the run's folder."""
    config = json.loads(json.dumps(job.config).replace(str(job.run_folder), ""))
    for name in ("teachers", "kd_weight", "ce_weight", "weighting", "learn_projection"):
        config["model"].pop(name, None)
    callbacks = [entry["class_path"] for entry in config["trainer"]["callbacks"]]
    config["trainer"]["callbacks"] = [
        name for name in callbacks if not name.endswith(("DynamicLossScaling", "TeacherMonitor"))
    ]
    return config


def test_on_real_text_a_run_has_the_teacher_of_its_baseline_so_that_their_windows_are_the_same(
    shipped: dict[Key, Job],
) -> None:
    def teachers(run: str, seed: int) -> dict[str, str]:
        return {
            name: set_up["model"] for name, set_up in shipped["real", run, seed].config["model"]["teachers"].items()
        }

    for run in load_suites(["real"])["real"].runs.values():
        assert len(teachers(run.name, 0)) == 1
        assert all(teachers(run.name, seed) == teachers(run.baseline, seed) for seed in run.seeds)


def test_teachers_have_to_be_right_in_95_of_100_held_out_problems(shipped: dict[Key, Job]) -> None:
    not_asked = {"quick/teacher", "conditions/first"}  # minutes are too few; a student before it learns sums
    teachers = {need for job in shipped.values() for need in job.needs if "/".join(need[:2]) not in not_asked}
    assert len(teachers) == 6
    for key in teachers:
        assert shipped[key].at_least, key
        assert all(tag.startswith("held_out/exact_match") for tag in shipped[key].at_least)
        assert min(shipped[key].at_least.values()) == 0.95


# Settings and needs


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


# The quick suite


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
