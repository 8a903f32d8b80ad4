"""EvalHarness refuses before training what cannot be evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluated_runs import TASKS, Recorder, fit, harness, write_workspace

import xtoken_pl.callbacks.eval_harness as eval_harness
from xtoken_pl.callbacks import EvalHarness
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workspace(tmp_path_factory.mktemp("evaluated"))


def refused(folder: Path, root: Path, callback: EvalHarness) -> None:
    """Runs `fit`, which must raise before the first step."""
    recorder = Recorder()
    try:
        fit(folder, root, callback, recorder)
    finally:
        assert not recorder.steps


def test_unknown_task_is_refused_with_the_nearest_names(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    whole = lm_eval.tasks.TaskManager  # indexing all of lm-eval's own tasks takes seconds

    def own_only(include_path: str | None = None, include_defaults: bool = True) -> Any:
        return whole(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own_only)
    with pytest.raises(ValueError, match=r"there is no 'word'. The nearest: words, .*include_path adds your own"):
        refused(folder, tmp_path, harness(folder, {"words": 1, "word": 1}))


def test_missing_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"include_path must be a directory .*'/no/such' is not"):
        refused(folder, tmp_path, harness(folder, include_path="/no/such"))


def test_missing_lm_eval_is_refused_with_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval_harness, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'xtoken_pl\[eval\]'"):
        refused(folder, tmp_path, harness(folder))


def altered(folder: Path, root: Path, **settings: Any) -> str:
    """Writes the task ``altered``, which is ``words`` with other settings; returns its directory."""
    task = yaml.safe_load((folder / "tasks/words.yaml").read_text())
    root.mkdir()
    (root / "altered.yaml").write_text(yaml.safe_dump({**task, "task": "altered", **settings}))
    return str(root)


def test_task_without_its_data_is_refused(folder: Path, tmp_path: Path) -> None:
    path = altered(folder, tmp_path / "tasks", dataset_kwargs={"data_files": {"test": "/no/such.jsonl"}})
    with pytest.raises(ValueError, match=r"task 'altered' could not be loaded; .*no/such.jsonl"):
        refused(folder, tmp_path, harness(folder, {"altered": None}, include_path=path))


def test_task_that_runs_the_students_code_is_refused(folder: Path, tmp_path: Path) -> None:
    path = altered(folder, tmp_path / "tasks", unsafe_code=True)
    with pytest.raises(ValueError, match="must not run code that the student wrote, unlike 'altered'"):
        refused(folder, tmp_path, harness(folder, {"altered": None}, include_path=path))


def test_task_that_fails_on_its_first_question_is_refused(folder: Path, tmp_path: Path) -> None:
    path = altered(folder, tmp_path / "tasks", doc_to_target="{{no_such_column.x}}")
    with pytest.raises(Exception, match="no_such_column"):
        refused(folder, tmp_path, harness(folder, {"altered": 0}, include_path=path))


def test_task_contained_in_two_names_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'all_three' contains 'words' again"):
        refused(folder, tmp_path, harness(folder, {"words": 1, "all_three": 0}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {}}, "tasks must name at least one"),
        ({"tasks": {"words": -1}}, "examples of task 'words' must be >= 0, got -1"),
        ({"tasks": TASKS, "every_n_steps": 0}, "every_n_steps must be >= 1, got 0"),
        ({"tasks": TASKS, "limit": 0}, "limit must be >= 1, got 0"),
        ({"tasks": TASKS, "batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"tasks": TASKS, "at_end": False}, "would never run"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalHarness(**options)
