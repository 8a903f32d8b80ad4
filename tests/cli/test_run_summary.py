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
    assert re.match(r"split: \w+KL \(auto, because .+\), alpha 0\.5", first["teacher split"])
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
    assert rows["to resume"].startswith("nothing was stored")
    assert "last checkpoint" not in rows


def test_a_validation_that_was_not_due_is_told_from_one_that_was_not_set(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", "config.yaml", "--trainer.max_steps", "1"])
    rows = _rows(capsys.readouterr().out)
    assert rows["title"].startswith("trained 1 step in ")
    assert re.fullmatch(r"\d\.\d+ at step 0, not measured since: no validation was due .*", rows["bits per byte"])


def test_checkpoints_of_weights_alone_are_not_offered_to_resume_from(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = json.loads(json.dumps(_BASE["trainer"]))
    trainer["callbacks"] = trainer["callbacks"][1:]
    trainer["callbacks"][0]["init_args"]["save_weights_only"] = True
    Path("weights.yaml").write_text(yaml.safe_dump({**_BASE, "trainer": trainer}))
    main(["fit", "--config", "weights.yaml"])
    rows = _rows(capsys.readouterr().out)
    assert "--ckpt_path" not in rows["to resume"]
    assert rows["to resume"].startswith("the checkpoints hold weights alone; start a run from the student that")
    assert f"export --checkpoint {rows['last checkpoint']}`" in rows["to resume"]


@pytest.mark.parametrize("exports", [False, True])
def test_a_run_that_ends_before_its_first_validation_stores_a_checkpoint_that_resumes(
    capsys: pytest.CaptureFixture[str], *, exports: bool
) -> None:
    trainer = json.loads(json.dumps(_BASE["trainer"])) | {"val_check_interval": 4}
    trainer["logger"]["init_args"]["name"] = name = f"short-{exports}"
    checkpoint = {"monitor": "val/bits_per_byte"}
    trainer["callbacks"][1]["init_args"] = checkpoint
    trainer["callbacks"] = trainer["callbacks"] if exports else trainer["callbacks"][1:]
    Path("short.yaml").write_text(yaml.safe_dump({**_BASE, "trainer": trainer}))
    main(["fit", "--config", "short.yaml", "--trainer.max_steps", "2"])
    rows = _rows(capsys.readouterr().out)
    assert rows["last checkpoint"] == f"runs/{name}/version_0/checkpoints/last.ckpt"
    assert Path(rows["last checkpoint"]).is_file()
    assert ("export" in rows) == exports
    main(shlex.split(rows["to resume"])[3:])
    assert _rows(capsys.readouterr().out)["title"].endswith("from step 2 to step 4")


def test_a_last_checkpoint_of_an_earlier_step_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = json.loads(json.dumps(_BASE["trainer"]))
    trainer["callbacks"] = [trainer["callbacks"][1]]
    trainer["callbacks"][0]["init_args"]["every_n_train_steps"] = 3
    Path("every3.yaml").write_text(yaml.safe_dump({**_BASE, "trainer": trainer}))
    main(["fit", "--config", "every3.yaml"])
    assert _rows(capsys.readouterr().out)["last checkpoint"].endswith("last.ckpt, of step 3")


@pytest.mark.parametrize("top_k", [0, 1])
def test_nothing_is_promised_that_was_not_stored(capsys: pytest.CaptureFixture[str], top_k: int) -> None:
    trainer = json.loads(json.dumps(_BASE["trainer"]))
    trainer["callbacks"] = [trainer["callbacks"][1]]
    trainer["callbacks"][0]["init_args"] = {"save_top_k": top_k, "dirpath": f"top-{top_k}"}
    Path("top_k.yaml").write_text(yaml.safe_dump({**_BASE, "trainer": trainer}))
    main(["fit", "--config", "top_k.yaml"])
    rows = _rows(capsys.readouterr().out)
    assert ("last checkpoint" in rows) == Path(f"top-{top_k}").exists() == bool(top_k)
    assert rows["to resume"].startswith("python -m" if top_k else "nothing was stored")


def test_a_development_run_stores_no_checkpoint() -> None:
    config = json.loads(json.dumps(_BASE))
    config["trainer"]["callbacks"][1]["init_args"] = {"dirpath": "development", "save_last": True}
    Path("development.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "development.yaml", "--trainer.fast_dev_run", "2"])
    assert not list(Path().glob("development/*"))


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


def test_weights_by_kind_of_span_are_set_said_and_may_change_on_resume(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    teacher = {**_BASE["model"]["teachers"]["split"], "spans": {"many_to_many": 0, "one_to_many": 0.5}}
    config = {**_BASE, "model": {**_BASE["model"], "teachers": {"split": teacher}}}
    (tmp_path / "weighted.yaml").write_text(yaml.safe_dump(config))
    arguments = ["fit", "--config", str(tmp_path / "weighted.yaml"), "--trainer.logger.init_args.name", "weighted"]
    main(arguments)
    first = _rows(capsys.readouterr().out)
    assert first["teacher split"].endswith("alpha 0.5, spans weighted by kind: many_to_many 0, one_to_many 0.5")
    with caplog.at_level("INFO"):
        main([*shlex.split(first["to resume"])[3:], "--model.teachers.split.spans", "{many_to_many: 2}"])
    second = _rows(capsys.readouterr().out)
    assert second["teacher split"].endswith("alpha 0.5, spans weighted by kind: many_to_many 2")
    assert "resuming with another spans of 'split': {'many_to_many': 2.0}, {'many_to_many': 0" in caplog.text
