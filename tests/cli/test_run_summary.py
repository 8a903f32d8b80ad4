"""The summary that ``fit`` prints at its end."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import yaml
from logged import scalars
from small_models import TEXTS
from small_run import monitored_run, write_models, write_texts

from xtoken_pl.cli import main

_BASE = monitored_run()
_BASE["model"]["teachers"] = {"split": {"model": "split", "alpha": 0.5}}
_BASE["model"]["optimizer"]["learning_rate"] = 1e-2
_BASE["data"]["sequence_length"] = 32
_BASE["trainer"]["callbacks"] = _BASE["trainer"]["callbacks"][-2:]  # the export and the checkpoints


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("summary")
    write_models(root)
    write_texts(root, TEXTS[:2])
    (root / "config.yaml").write_text(yaml.safe_dump(_BASE))
    return root


@pytest.fixture(autouse=True)
def inside(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)


def _rows(output: str) -> dict[str, str]:
    lines = output[output.index("\ntrained ") + 1 :].splitlines()
    rows = (re.fullmatch(r"  (\S.*?)  +(\S.*)", line) for line in lines[1:])
    return {"title": lines[0], **{row[1]: row[2] for row in rows if row is not None}}


def test_fit_ends_with_what_was_trained_and_a_command_that_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", "config.yaml"])
    first = _rows(capsys.readouterr().out)
    run = Path("runs/test/version_0")
    assert first["title"].startswith("trained 4 steps in ")
    assert first["student"].startswith("student (pretrained weights), 0.1 million parameters")
    assert re.match(r"split: ProjectionKL \(auto, because .+\), alpha 0\.5", first["teacher split"])
    assert first["logs"] == f"{run}; to watch: tensorboard --logdir runs"
    assert Path(first["export"]) == run / "export"
    assert Path(first["last checkpoint"]).is_file()
    logged = scalars(run)["val/bits_per_byte"]
    assert first["bits per byte"] == f"{logged[0]:.3f} at step 0, {logged[-1]:.3f} at step 4"
    assert logged[-1] < logged[0]

    command = shlex.split(first["to resume"])
    assert command[:3] == ["python", "-m", "xtoken_pl"]
    main(command[3:])
    second = _rows(capsys.readouterr().out)
    assert second["title"].endswith("from step 4 to step 8")
    # The run's beginning is remembered.
    assert second["bits per byte"].startswith(f"{logged[0]:.3f} at step 0, ")
    assert second["to resume"].endswith("--ckpt_path last --trainer.max_steps 16")
    assert second["to resume"].count("--ckpt_path") == second["to resume"].count("--trainer.max_steps") == 1


def test_a_run_without_checkpoints_or_validation_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    config = {**_BASE, "data": {key: value for key, value in _BASE["data"].items() if key != "val"}}
    trainer = {**_BASE["trainer"], "callbacks": [], "enable_checkpointing": False, "logger": False}
    config["trainer"] = {key: value for key, value in trainer.items() if not key.startswith(("val", "limit"))}
    Path("bare.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "bare.yaml"])
    rows = _rows(capsys.readouterr().out)
    assert rows["bits per byte"].startswith("not validated")
    assert rows["to resume"].startswith("no checkpoint was written")
    assert "last checkpoint" not in rows


def test_a_validation_that_was_not_due_is_told_from_one_that_was_not_set(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", "config.yaml", "--trainer.max_steps", "1"])
    rows = _rows(capsys.readouterr().out)
    assert rows["title"].startswith("trained 1 step in ")
    assert re.fullmatch(r"\d\.\d+ at step 0, not measured since: no validation was due .*", rows["bits per byte"])


class StopAtStep(pl.Callback):
    """Ctrl-C after three steps."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            raise KeyboardInterrupt


def test_a_run_stopped_by_hand_says_how_to_resume(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = json.loads(json.dumps(_BASE["trainer"]))
    trainer["logger"]["init_args"]["name"] = "stopped"
    trainer["callbacks"][1]["init_args"]["every_n_train_steps"] = 2
    trainer["callbacks"].append({"class_path": f"{__name__}.StopAtStep"})
    Path("stopped.yaml").write_text(yaml.safe_dump({**_BASE, "trainer": trainer}))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "stopped.yaml"])
    assert stopped.value.code == 130
    output = capsys.readouterr().out
    assert "stopped at step 3; the last checkpoint is runs/stopped/version_0/checkpoints/last.ckpt" in output
    assert "to resume: python -m xtoken_pl fit --config stopped.yaml --ckpt_path last\n" in output
