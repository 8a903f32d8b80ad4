"""Shipped suites are accepted by the command line, and their runs are what their names say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments import jobs as jobs_module
from experiments.claims import CLAIMS, QUICK_CLAIMS, ZERO, load_claims, unknown_runs
from experiments.finished import Key
from experiments.jobs import Job, make_jobs
from experiments.side_by_side import COLUMNS
from experiments.suites import EVIDENCE, RECORDED, load_suites
from xtoken_pl.cli import main
from xtoken_pl.cli.config_files import merge
from xtoken_pl.cli.usage import UsageError


def test_every_shipped_suite_loads_and_has_the_runs_and_metrics_of_the_claims() -> None:
    suites = load_suites()
    assert {*suites} == {*EVIDENCE, *RECORDED, "quick", "words"}
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


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[Key, Job]:
    """The jobs of all suites; neither files nor fingerprints are asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs_module, "prepare", lambda folder: None)
        patch.setattr(jobs_module, "write_lines", lambda lines, seed, folder: folder / "lines.jsonl")
        return make_jobs(load_suites(), tmp_path_factory.mktemp("suites"))


@pytest.mark.slow
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


LOSSES = {
    **{"bp": "BytePrefixKL", "bpm": "BPM", "escd": "ESCD", "ppkl": "PrefixPartitionKL", "simct": "SimCT"},
    **{"strict": "StrictTopK", "alm": "ALM", "pkl": "ProjectionKL", "hkl": "HybridKL", "gold": "GOLD", "uld": "ULD"},
    "kl": "TokenKL",
}
NAMED = re.compile(r"(?P<teacher>[dpsrlm])_(?P<loss>[a-z]+)(?P<change>_.*)?")
#: Where the teachers of a suite come from, if not from that of sums or of letters.
EXPORTS = {"words": "words/teacher_{}", "quick": "quick/teacher"}


def test_runs_have_the_teacher_the_loss_and_the_scaling_that_their_names_say(shipped: dict[Key, Job]) -> None:
    seen = set()
    for (suite, name, _), job in shipped.items():
        if not (named := NAMED.fullmatch(name)) or named["loss"] == "ce":
            continue
        ((teacher, given),) = job.config["model"]["teachers"].items()
        assert given["loss"]["class_path"] == f"xtoken_pl.{LOSSES[named['loss']]}", (suite, name)
        of_task = f"{'losses_letters' if teacher in 'lm' else 'addition'}/teacher_{{}}"
        assert f"/{EXPORTS.get(suite, of_task).format(teacher)}/" in given["model"], (suite, name)
        splits = "splitting" in job.config["model"]["student"]["model"]  # the student of R, whose teacher is P
        assert (teacher, splits) == ("p", True) if named["teacher"] == "r" else (named["teacher"], False)
        is_scaled = any("DynamicLossScaling" in entry["class_path"] for entry in job.config["trainer"]["callbacks"])
        rollouts = job.config["model"].get("rollouts") or {"init_args": {}}
        is_on_policy = rollouts["init_args"].get("share") == 1.0
        assert is_on_policy == (suite == "losses_on_policy" or "share_1" in name), (suite, name)
        assert is_scaled == (not is_on_policy and not re.search("fixed|common", name)), (suite, name)
        seen.add((suite, named["teacher"], named["loss"]))
    assert {loss for suite, _, loss in seen if suite == "losses"} == {*LOSSES} - {"hkl"}
    assert {loss for suite, _, loss in seen if suite == "losses_letters"} == {*LOSSES} - {"kl"}


def test_every_loss_has_a_value_under_every_teacher_of_the_suites_that_stand_side_by_side() -> None:
    """Its own, or that of a loss that is the same there."""
    for suite in load_suites([*COLUMNS]).values():
        runs = [run for run in suite.runs.values() if run.teacher and run.baseline]
        titles = {
            teacher: sorted(
                title for run in runs if run.teacher == teacher for title in (run.title, *run.also) if title != "KL"
            )
            for teacher in {run.teacher for run in runs}
        }
        expected = {tuple(sorted({*of_teacher} - {"cross-entropy alone"})) for of_teacher in titles.values()}
        assert len(expected) == 1, (suite.name, titles)
        assert all(len({*of_teacher}) == len(of_teacher) for of_teacher in titles.values()), suite.name
        assert len(expected.pop()) == 13, suite.name


def test_runs_differ_from_their_baselines_in_the_loss_alone(shipped: dict[Key, Job]) -> None:
    """Lines, steps, the student and the learning rate are those of the baseline, and so is the seed.

    On-policy runs also differ in who writes the text.
    """
    suites, compared = load_suites(), 0
    for key, job in shipped.items():
        baseline = suites[key[0]].runs[key[1]].baseline
        if baseline in ("", key[1]):
            continue
        if re.match("domains_|.*_long$", key[1]):  # other data, and more steps
            continue
        other = shipped[key[0], baseline, key[2]]
        if suites[key[0]].runs[key[1]].seeds == suites[key[0]].runs[baseline].seeds:
            assert without_loss(job) == without_loss(other), key
            compared += 1
    assert compared > 150


def without_loss(job: Job) -> dict[str, Any]:
    """A configuration without what a distillation loss is, how it is weighted and watched, and the run's folder."""
    config = json.loads(json.dumps(job.config).replace(str(job.run_folder), ""))
    for name in ("teachers", "kd_weight", "ce_weight", "weighting", "learn_projection", "rollouts"):
        config["model"].pop(name, None)
    callbacks = [entry["class_path"] for entry in config["trainer"]["callbacks"]]
    config["trainer"]["callbacks"] = [
        name for name in callbacks if not name.endswith(("DynamicLossScaling", "TeacherMonitor"))
    ]
    return config


def test_on_real_text_a_run_has_the_teacher_of_its_baseline_so_that_their_windows_are_the_same(
    shipped: dict[Key, Job],
) -> None:
    def teachers(suite: str, run: str, seed: int) -> dict[str, str]:
        return {name: set_up["model"] for name, set_up in shipped[suite, run, seed].config["model"]["teachers"].items()}

    for suite in load_suites(["real", "losses_real", "losses_pretrained"]).values():
        for run in suite.runs.values():
            if not run.baseline:  # the teacher itself
                continue
            assert len(teachers(suite.name, run.name, 0)) == 1
            assert all(
                teachers(suite.name, run.name, seed) == teachers(suite.name, run.baseline, seed) for seed in run.seeds
            )


def test_teachers_have_to_be_right_in_95_of_100_held_out_problems(shipped: dict[Key, Job]) -> None:
    not_asked = {"quick/teacher", "conditions/first"}  # minutes are too few; a student before it learns sums
    not_asked |= {"losses_pretrained/teacher"}  # of text, which has no right answers
    not_asked |= {
        "warm_up/ce",
        "warm_up/ce_long",
        "warm_up/ce_splitting",
        "on_policy_complementary/warm_up",
    }  # students, too
    teachers = {need for job in shipped.values() for need in job.needs if "/".join(need[:2]) not in not_asked}
    assert len(teachers) == 8
    for key in teachers:
        assert shipped[key].at_least, key
        assert all(tag.startswith("held_out/exact_match") for tag in shipped[key].at_least)
        assert min(shipped[key].at_least.values()) == 0.95
