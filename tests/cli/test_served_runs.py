"""A run with a served teacher needs its tokenizer alone, resumes, and stores its server but no key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_models import TEXTS, splitting_tokenizer, write_model
from small_run import monitored_run, write_models, write_texts
from stand_in_server import StandInServer
from transformers import AutoModelForCausalLM

from xtoken_pl.cli import main
from xtoken_pl.utilities.errors import UserError

KEY = "s3cr3t-0123456789"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInServer]:
    """A server, and a folder with a run whose teacher it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHER_API_KEY", KEY)
    write_models(tmp_path)
    write_texts(tmp_path, TEXTS[:2], length=300)
    splitting_tokenizer().save_pretrained(tmp_path / "tokenizer")  # no config.json, no weights
    model = AutoModelForCausalLM.from_pretrained("split")
    with StandInServer(model, splitting_tokenizer(), name="org/big", api_key=KEY) as running:
        options = {"url": running.url, "model": "org/big", "top_k": 8, "api_key_env": "TEACHER_API_KEY"}
        config = monitored_run()
        teacher = {"model": "tokenizer", "loss": "xtoken_pl.ProjectionKL", "server": options}
        config["model"]["teachers"] = {"big": teacher}
        config["trainer"] |= {"max_steps": 2, "val_check_interval": 1}
        config["trainer"]["callbacks"] += [
            {"class_path": f"xtoken_pl.callbacks.{name}"}
            for name in ("ThroughputMonitor", "AlignmentMonitor", "PictureMonitor")
        ]
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        yield running


def test_a_run_with_a_server_keeps_its_address_and_no_key(
    server: StandInServer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    main(["fit", "--config", "run.yaml"])
    told = capfd.readouterr()
    assert re.search(rf"teacher big +tokenizer, served by {server.url} as org/big, k = 8: Projection", told.out)
    resumed = ["--ckpt_path", "last", "--trainer.max_steps", "3", "--model.teachers.big.server.top_k", "16"]
    main(["fit", "--config", "run.yaml", *resumed])
    told_again = capfd.readouterr()
    assert "from step 2 to step 3" in told_again.out
    assert "resuming with another server of 'big'" in caplog.text

    kept = yaml.safe_load(Path("runs/test/version_0/config.yaml").read_text())
    stored: dict[str, Any] = kept["model"]["init_args"]["teachers"]["big"]["server"]
    assert stored.items() >= {"url": server.url, "model": "org/big", "api_key_env": "TEACHER_API_KEY"}.items()
    files = [path for path in Path("runs").rglob("*") if path.is_file()]
    assert any(path.suffix == ".ckpt" for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in told.out + told.err + told_again.out + told_again.err + caplog.text


def test_a_run_does_not_resume_with_other_weights_behind_the_same_name(
    server: StandInServer, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", "run.yaml"])
    server.model = AutoModelForCausalLM.from_pretrained(write_model(Path("another"), splitting_tokenizer(), seed=9))
    with pytest.raises(UserError, match=r"server of teacher 'big' must have the weights that the run began with"):
        main(["fit", "--config", "run.yaml", "--ckpt_path", "last", "--trainer.max_steps", "3"])


def test_a_window_is_inspected_with_the_predictions_of_a_served_teacher(
    server: StandInServer, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["inspect", "--config", "run.yaml", "--num_spans", "2"])
    assert server.prompts
    out = capfd.readouterr().out
    assert "big: tokenizer" in out
    assert "nats" in out


def test_a_plan_asks_no_server(
    server: StandInServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TEACHER_API_KEY")
    main(["plan", "--config", "run.yaml"])
    assert "teacher big: served rows" in capfd.readouterr().out
    assert not server.headers


def test_a_missing_key_is_named_before_texts_are_read(server: StandInServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_API_KEY")
    with pytest.raises(UserError, match=r"'TEACHER_API_KEY' must hold the API key .* 'big', but it is not set"):
        main(["fit", "--config", "run.yaml", "--data.train.path", "no.jsonl"])
