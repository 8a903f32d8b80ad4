"""What commands and callbacks ask of a loss: a user's own is planned, inspected and cached like the package's."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from own_losses import LeadingByte, hidden_cosine
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer, write_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import PreTrainedTokenizerFast

import xtoken_pl
from xtoken_pl import (
    ALM,
    BPM,
    ESCD,
    GOLD,
    ULD,
    BytePrefixKL,
    HybridKL,
    MatchedRowLoss,
    PrefixPartitionKL,
    ProjectionKL,
    SimCT,
    SpanLoss,
    StrictTopK,
    Teacher,
    TokenKL,
    build_projection,
)
from xtoken_pl.audit import CHOICES
from xtoken_pl.cli import main
from xtoken_pl.losses import RowContent, SpanScores, projection_bytes
from xtoken_pl.plan import terms
from xtoken_pl.specs import AutoLoss
from xtoken_pl.teachers.source import check_source
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.weighting import ConfidenceWeighting, StaticWeighting

OF_CACHE = RowContent("span_starts")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose loss is one of the user's own."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "student", packing_tokenizer(), seed=1)
    write_model(tmp_path / "split", splitting_tokenizer(), seed=2)
    for name, text in (("train", TEXTS[0][:600]), ("val", TEXTS[1][:300])):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    loss = {"class_path": "own_losses.LeadingByte", "init_args": {"scale": 2.0}}
    config: dict[str, Any] = {
        "seed_everything": 1,
        "model": {"student": {"model": "student"}, "teachers": {"t": {"model": "split", "loss": loss}}},
        "data": {"train": {"path": "train.jsonl"}, "val": {"path": "val.jsonl"}, "sequence_length": 48, "batch_size": 2}
        | {"num_workers": 0},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 1,
            "val_check_interval": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": "runs", "name": "", "version": ""},
            },
            "callbacks": [
                {"class_path": f"xtoken_pl.callbacks.{name}"}
                for name in (
                    "TeacherMonitor",
                    "DynamicLossScaling",
                    "ProjectionMonitor",
                    "PictureMonitor",
                    "NumeralMonitor",
                )
            ],
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_a_loss_of_ones_own_is_planned_inspected_cached_and_trained_from_the_cache(
    workspace: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    main(["plan", "--config", "run.yaml", "--json_output", "plan.json"])
    planned = json.loads(Path("plan.json").read_text())
    sizes = len(packing_tokenizer()), len(splitting_tokenizer())
    peak = planned["moments"][planned["peak_moment"]]
    assert peak["teacher t: W and loss tables"] == LeadingByte().state_bytes(*sizes)

    capsys.readouterr()
    main(["inspect", "--config", "run.yaml", "--html", "shown.html"])
    shown = capsys.readouterr().out
    assert re.search(r"tokens of the same first byte: 0 of [\d,]+ have exactly one teacher token", shown)
    assert re.search(r"→ multi-token: 1 \S+ \+ 1 \S+", shown)
    assert shown.count(" nats") == 8
    assert "student through W" not in shown
    assert "tokens of the same first byte" in Path("shown.html").read_text()

    main(["cache", "--config", "run.yaml", "--teacher", "t", "--output", "stored", "--top_k", "8"])
    (workspace / "split/model.safetensors").unlink()
    with caplog.at_level(logging.INFO):
        main(["fit", "--config", "run.yaml", "--model.teachers.t.cache", "stored"])
    assert "teacher 't': top_k of LeadingByte -> 8, the number of tokens that are known of each row" in caplog.text
    events = EventAccumulator("runs")
    events.Reload()
    assert {"train/kd/t", "val/kd/t", "val/top1_agreement/t"} <= set(events.Tags()["scalars"])
    (step,) = events.Scalars("train/kd/t")
    assert 0 < step.value < 4


def test_a_matched_row_loss_needs_no_method_to_be_planned_and_cached() -> None:
    class Own(MatchedRowLoss):
        def score_rows(self, *_: Any) -> SpanScores:
            raise NotImplementedError

    check_source("t", "its cache", OF_CACHE, Own(), StaticWeighting(), "way out")
    loss = Own()
    assert loss.limit_teacher_tokens(7) == "teacher_top_k None -> 7"
    assert loss.limit_teacher_tokens(9) is None
    assert loss.teacher_top_k == 7
    assert loss.state_bytes(100, 50) == projection_bytes(100, 50)
    assert loss.counterparts([1]) is loss.projection is loss.learned_projection is None


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (
            BytePrefixKL(),
            "(BytePrefixKL) reads every row of the teacher, and its cache has one row for each span; choose",
        ),
        (ProjectionKL(merge="mean"), "(ProjectionKL) reads every row"),
        (
            BytePrefixKL(lookahead=0.5),
            "(BytePrefixKL) reads distributions behind tokens that the text does not have (lookahead) of the teacher",
        ),
        (
            hidden_cosine(4, 4),
            "(HiddenCosine) reads hidden states of the teacher, and its cache has no hidden states; take",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_cache_does_not_hold_is_refused_by_name(loss: SpanLoss, expected: str) -> None:
    with pytest.raises(UserError, match=f"the loss of teacher 'me' {re.escape(expected)}"):
        check_source("me", "its cache", OF_CACHE, loss, StaticWeighting(), "way out")


def test_a_weighting_says_what_it_needs_beyond_the_rows_of_span_starts() -> None:
    check_source("me", "its cache", OF_CACHE, TokenKL(), ConfidenceWeighting(), "way out")
    with pytest.raises(UserError, match=r"ConfidenceWeighting\(measure=entropy.*\) reads every row of teacher 'me'"):
        check_source("me", "its cache", OF_CACHE, TokenKL(), ConfidenceWeighting("entropy"), "way out")
    check_source("me", "its cache", RowContent("all"), TokenKL(), ConfidenceWeighting("entropy"), "way out")


@pytest.mark.parametrize(
    ("loss", "learned"),
    [(loss, False) for loss in (TokenKL(), ULD(), GOLD(), HybridKL(), BytePrefixKL(), ProjectionKL())]
    + [(loss, False) for loss in (ALM(), BPM(), ESCD(), PrefixPartitionKL(), SimCT(), StrictTopK())]
    + [(ProjectionKL(), True)],
    ids=repr,
)
def test_planned_bytes_bound_what_a_bound_loss_holds(loss: SpanLoss, learned: bool) -> None:
    student = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    other = packing_tokenizer() if isinstance(loss, TokenKL) else splitting_tokenizer()
    teacher = CanonicalVocabulary.from_tokenizer(other)
    loss.bind(student, teacher, build_projection(packing_tokenizer(), other) if loss.needs_projection else None)
    if learned:
        loss.learn_projection()
    held = sum(buffer.nbytes for buffer in loss.buffers())
    assert held <= loss.state_bytes(len(student), len(teacher), learned=learned)


def test_planned_bytes_bound_what_the_byte_prefix_kl_holds_of_a_large_teacher(qwen3: PreTrainedTokenizerFast) -> None:
    """With many more tokens than the student, of more than six bytes on average."""
    student, teacher = (CanonicalVocabulary.from_tokenizer(each) for each in (packing_tokenizer(), qwen3))
    loss = BytePrefixKL()
    loss.bind(student, teacher, None)
    held = sum(buffer.nbytes for buffer in loss.buffers())
    assert held <= loss.state_bytes(len(student), len(teacher))


@pytest.mark.parametrize("rule", get_args(AutoLoss))
def test_plan_of_a_rule_is_that_of_the_largest_choice(rule: AutoLoss) -> None:
    planned = terms.loss_bytes(Teacher(model="x", loss=rule), 1000, 2000)
    of_choices = [getattr(xtoken_pl, name)().state_bytes(1000, 2000) for name in CHOICES[rule]]
    assert planned == max(of_choices)
    assert len(of_choices) > 1


def test_a_losss_own_parameters_are_planned() -> None:
    own = hidden_cosine(8, 16)
    assert own.state_bytes(1000, 2000) == projection_bytes(1000, 2000) + 4 * 4 * 8 * 16
