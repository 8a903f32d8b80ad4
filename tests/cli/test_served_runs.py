"""A run with a served teacher needs its tokenizer alone, resumes, and stores its server but no key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_models import TEXTS, splitting_tokenizer
from small_run import monitored_run, write_models, write_texts
from transformers import AutoModelForCausalLM

from xtoken_pl.batch import AllRows, TokenBatch, TopTokens
from xtoken_pl.batch.quantization import bits_of
from xtoken_pl.cli import main
from xtoken_pl.teachers.served.teacher import ServedTeacher

KEY = "s3cr3t-0123456789"
SERVER = {"url": "http://localhost:1/v1", "model": "org/big", "top_k": "all", "api_key_env": "TEACHER_API_KEY"}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHER_API_KEY", KEY)
    write_models(tmp_path)
    write_texts(tmp_path, TEXTS[:2], length=300)
    splitting_tokenizer().save_pretrained(tmp_path / "tokenizer")  # no config.json, no weights
    config = monitored_run()
    config["model"]["teachers"] = {"big": {"model": "tokenizer", "loss": "xtoken_pl.ProjectionKL", "server": SERVER}}
    config["trainer"]["max_steps"] = 2
    config["trainer"]["callbacks"] += [
        {"class_path": f"xtoken_pl.callbacks.{name}"} for name in ("ThroughputMonitor", "AlignmentMonitor")
    ]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("xtoken_pl.training.parts.check_server", lambda *_: None)
    monkeypatch.setattr(ServedTeacher, "ask", _answer)
    return tmp_path


@torch.no_grad()
def _answer(_: ServedTeacher, batches: Sequence[TokenBatch]) -> list[AllRows]:
    """Rows of a model of this process, in place of a server's."""
    model, result = AutoModelForCausalLM.from_pretrained("split"), []
    for tokens in batches:
        logits = model(tokens.input_ids, attention_mask=tokens.attention_mask).logits
        log_probs = logits.flatten(0, 1)[tokens.rows].log_softmax(-1)
        observed = log_probs.gather(1, tokens.labels[:, None]).squeeze(1)
        result.append(AllRows(TopTokens(bits_of(log_probs.numpy()), None, None), bits_of(observed.numpy())))
    return result


def test_a_run_with_a_server_keeps_its_address_and_no_key(
    workspace: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    main(["fit", "--config", "run.yaml"])
    told = capsys.readouterr()
    assert re.search(r"teacher big +tokenizer, served by http://localhost:1/v1 as org/big, k = all: Proj", told.out)
    main(["fit", "--config", "run.yaml", "--ckpt_path", "last", *_LATER])
    told_again = capsys.readouterr()
    assert "from step 2 to step 4" in told_again.out
    assert "resuming with another server of 'big'" in caplog.text
    kept = yaml.safe_load((workspace / "runs/test/version_0/config.yaml").read_text())
    server: dict[str, Any] = kept["model"]["init_args"]["teachers"]["big"]["server"]
    assert server.items() >= SERVER.items()
    files = [path for path in (workspace / "runs").rglob("*") if path.is_file()]
    assert any(path.suffix == ".ckpt" for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in told.out + told.err + told_again.out + told_again.err + caplog.text


_LATER = ("--trainer.max_steps", "4", "--model.teachers.big.server.url", "http://localhost:2/v1")


def test_a_key_that_is_not_there_is_asked_for_before_texts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_API_KEY")
    with pytest.raises(ValueError, match=r"TEACHER_API_KEY.*is not set"):
        main(["fit", "--config", "run.yaml", "--data.train.path", "no.jsonl"])
