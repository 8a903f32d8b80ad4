"""What does not fit together is refused before texts are read and models are trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from small_run import Run, small_run

from xtoken_pl.cli import main


def failing(run: Run, capsys: pytest.CaptureFixture[str], *arguments: str, config: str = "config.yaml") -> str:
    """What a user reads when a run is refused."""
    with pytest.raises((SystemExit, ValueError, OSError)) as error:
        run("fit", *arguments, config=config)
    return str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.teachers.same.alfa", "1"], "alfa"),
        (["--model.studnet.model", "student"], "studnet"),
        (["--data.sequence_lenght", "9"], "sequence_lenght"),
        (["--model.teachers.same.alpha", "-1"], "alpha must be a finite number >= 0, got -1"),
        (["--model.teachers.same.temperature", "0"], "temperature must be > 0, got 0"),
        (["--data.train.path", "nothing.jsonl"], "there is no file or directory 'nothing.jsonl'"),
        (["--data.train.text_field", "body"], "text_field must be a column of the data, got 'body'"),
        (["--data.sequence_length", "1"], "sequence_length must be at least 2"),
        (["--model.teachers.split.model", "nowhere"], "'nowhere' could not be loaded"),
        (["--model.teachers.split.projection", "w0.safetensors"], "there is none at 'w0.safetensors'"),
        (["--model.teachers.same.learn_projection", "true"], "TokenKL gives them none"),
        (["--model.teachers.split.loss", "xtoken_pl.GOLD", "--model.teachers.split.loss.kl_weight", "-1"], "got -1"),
        (["--model.teachers.split.loss.divergence", "js"], "jensen_shannon"),
        (["--model.teachers.same.loss", "Auto"], "did you mean auto?"),
        (["--model.weighting", "xtoken_pl.ConfidenceWeighting", "--model.weighting.sharpness", "-2"], "got -2"),
        (["--model.kd_weight", "0.5"], "DynamicLossScaling and fixed weights exclude each other"),
        (["--config", "missing.yaml"], "there is none at 'missing.yaml'"),
        (
            ["--ckpt_path", "last", "--trainer.logger.init_args.name", "new"],
            "to resume from, and there is none in runs/new/*/checkpoints",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_input_is_named_before_training(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert expected in failing(run, capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model.teachers.split.projection", "w0.safetensors"], "there is none at 'w0.safetensors'"),
        (["--model.teachers.split.loss", "xtoken_pl.TokenKL"], "TokenKL needs the same vocabulary"),
        (["--model.teachers.same.loss", "auto", "--model.teachers.same.learn_projection", "true"], "gives them none"),
        (["--model.kd_weight", "0.5"], "exclude each other"),
        (
            ["--model.teachers.split.loss", "xtoken_pl.GOLD", "--model.teachers.split.loss.uld_weight", "0"],
            "can be negative (GOLD: merge=chain_rule",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused_before_texts_are_tokenized(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    def no_text_is_read(*_: object, **__: object) -> None:
        raise AssertionError("texts were read")

    monkeypatch.setattr("xtoken_pl.data.part_windows.load_source", no_text_is_read)
    assert expected in failing(run, capsys, *arguments)


def test_export_folder_that_exists_is_refused_before_training(
    workspace: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((workspace / "config.yaml").read_text())
    config["trainer"]["callbacks"][2]["init_args"] = {"dirpath": "student"}
    (workspace / "export.yaml").write_text(yaml.safe_dump(config))
    before = (workspace / "student/config.json").read_bytes()
    assert "student exists and is not overwritten by default" in failing(run, capsys, config="export.yaml")
    assert (workspace / "student/config.json").read_bytes() == before


@pytest.mark.parametrize("strict", [True, False])
def test_early_stopping_without_a_validation_is_refused_if_it_is_strict(
    workspace: Path, run: Run, capsys: pytest.CaptureFixture[str], strict: bool
) -> None:
    stopping = {"monitor": "val/ce", "strict": strict}
    config = small_run()
    config["trainer"]["callbacks"] = [
        {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stopping}
    ]
    (workspace / "stopping.yaml").write_text(yaml.safe_dump(config))
    if strict:
        assert "first measured after" in failing(run, capsys, config="stopping.yaml")
    else:
        main(["fit", "--config", "stopping.yaml"])  # in the directory into which `run` has changed
