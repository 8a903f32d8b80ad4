"""``loss: auto`` and ``auto_paper`` take the loss that their rule recommends for the pair of tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from logged import scalars
from small_models import packing_tokenizer, reversing_tokenizer, splitting_tokenizer, write_model
from small_run import Run

from xtoken_pl import recommend_loss
from xtoken_pl.tokenization import CanonicalVocabulary


def test_the_papers_rule_chooses_by_the_audit_and_says_why(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        arguments = ["--model.teachers.split.loss", "auto_paper", "--model.teachers.same.loss", "auto_paper"]
        tags = scalars(run("fit", *arguments, "--trainer.max_steps", "1"))
    logged = "\n".join(caplog.messages)
    outside = "because critical tokens of the student lie outside C"
    assert f"teacher 'split': loss auto_paper -> ProjectionKL, {outside}" in logged
    assert "teacher 'same': loss auto_paper -> TokenKL, because both sides share their tokens (fingerprint" in logged
    named = scalars(run("fit", "--trainer.max_steps", "1"))
    assert tags["train/kd"] == named["train/kd"]
    learned = run("fit", *arguments, "--model.teachers.split.learn_projection", "true", "--trainer.max_steps", "1")
    state = torch.load(learned / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert "losses.split.learned.logits" in state


def test_auto_is_the_default_and_takes_what_its_rule_recommends(
    workspace: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    packs, splits = (CanonicalVocabulary.from_tokenizer(make()) for make in (packing_tokenizer, splitting_tokenizer))
    other = {"model": {"teachers": {"new": {"model": "split"}, "own": {"model": "student"}}}}
    (workspace / "other.yaml").write_text(yaml.safe_dump(other))
    with caplog.at_level("INFO"):
        run("fit", "--config", "other.yaml", "--trainer.max_steps", "1")
    logged = "\n".join(caplog.messages)
    for name, teacher in (("new", splits), ("own", packs)):
        chosen = recommend_loss(packs, teacher)
        assert f"teacher '{name}': loss auto -> {chosen.loss}, because {chosen.reason}" in logged
        assert f"teacher '{name}': {chosen.loss}(" in logged


def test_the_papers_rule_takes_hybrid_kl_where_everything_critical_is_common(
    workspace: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(workspace / "packs", reversing_tokenizer(), seed=4)
    other = {"model": {"teachers": {"packs": {"model": "packs", "loss": "auto_paper"}}}, "trainer": {"max_steps": 1}}
    (workspace / "packs.yaml").write_text(yaml.safe_dump(other))
    with caplog.at_level("INFO"):
        tags = scalars(run("fit", "--config", "packs.yaml"))
    assert "teacher 'packs': loss auto_paper -> HybridKL, because all critical tokens" in "\n".join(caplog.messages)
    assert any("teacher 'packs': HybridKL" in line and "|U_T| = " in line for line in caplog.messages)
    assert tags["train/kd/packs"][0] > 0
