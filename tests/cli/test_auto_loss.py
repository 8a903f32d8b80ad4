"""``loss: auto`` takes the loss that the audit of the pair recommends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from logged import scalars
from small_models import reversing_tokenizer, write_model
from small_run import Run


def test_auto_chooses_by_the_audit_and_says_why(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        arguments = ["--model.teachers.split.loss", "auto", "--model.teachers.same.loss", "auto"]
        tags = scalars(run("fit", *arguments, "--trainer.max_steps", "1"))
    logged = "\n".join(caplog.messages)
    assert "teacher 'split': loss auto -> ProjectionKL, because critical tokens of the student lie outside C" in logged
    assert "teacher 'same': loss auto -> TokenKL, because both sides share their tokens (fingerprint" in logged
    named = scalars(run("fit", "--trainer.max_steps", "1"))
    assert tags["train/kd"] == named["train/kd"]
    learned = run("fit", *arguments, "--model.teachers.split.learn_projection", "true", "--trainer.max_steps", "1")
    state = torch.load(learned / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert "losses.split.learned.logits" in state


def test_auto_takes_hybrid_kl_where_everything_critical_is_common(
    workspace: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(workspace / "packs", reversing_tokenizer(), seed=4)
    other = {"model": {"teachers": {"packs": {"model": "packs"}}}, "trainer": {"max_steps": 1}}  # auto is the default
    (workspace / "packs.yaml").write_text(yaml.safe_dump(other))
    with caplog.at_level("INFO"):
        tags = scalars(run("fit", "--config", "packs.yaml"))
    assert "teacher 'packs': loss auto -> HybridKL, because all critical tokens" in "\n".join(caplog.messages)
    assert any("teacher 'packs': HybridKL" in line and "|U_T| = " in line for line in caplog.messages)
    assert tags["train/kd/packs"][0] > 0
