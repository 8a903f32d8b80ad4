"""The data module: windows are made once and cached, streams give the same batches, unusable texts are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from xtoken_pl import BytePrefixKL, CanonicalVocabulary, DistillDataModule, TextSource
from xtoken_pl.data import Windower
from xtoken_pl.prefix_map import PrefixPlan
from xtoken_pl.utilities.errors import UserError

STUDENT = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
TEACHERS = {
    "split": CanonicalVocabulary.from_tokenizer(splitting_tokenizer()),
    "coarse": CanonicalVocabulary.from_tokenizer(packing_tokenizer(1500)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records = [{"text": text, "other": index} for index, text in enumerate(TEXTS[:4])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def data_module(folder: Path, **options: Any) -> DistillDataModule:
    source = TextSource(path=str(folder / "a.jsonl"))
    module = DistillDataModule(source, source, sequence_length=64, batch_size=4, num_workers=0, **options)
    module.connect(STUDENT, TEACHERS)
    return module


def test_tokenization_and_alignment_are_cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data_module(folder)
    first.prepare_data()
    first.setup("fit")
    monkeypatch.setattr(Windower, "pieces", lambda *_, **__: pytest.fail("tokenized again"))
    second = data_module(folder)
    second.prepare_data()
    second.setup("fit")
    assert second.datasets["train"][3]["student_ids"].tolist() == first.datasets["train"][3]["student_ids"].tolist()


def test_another_sequence_length_is_not_served_from_the_cache(folder: Path) -> None:
    data_module(folder).setup("fit")
    source = TextSource(path=str(folder / "a.jsonl"))
    other = DistillDataModule(source, sequence_length=32)
    other.connect(STUDENT, TEACHERS)
    other.setup("fit")
    assert max(len(row["student_ids"]) for row in other.datasets["train"]) <= 32


def test_streaming_gives_the_same_batches(folder: Path) -> None:
    stored, streamed = data_module(folder), data_module(folder, streaming=True)
    for module in (stored, streamed):
        module.setup("fit")
    for ours, theirs in zip(stored.val_dataloader(), streamed.val_dataloader(), strict=True):
        assert torch.equal(ours.student.input_ids, theirs.student.input_ids)
        assert torch.equal(ours.teachers["split"].spans.teacher_first, theirs.teachers["split"].spans.teacher_first)


def test_training_batches_are_shuffled_and_complete(folder: Path) -> None:
    module = data_module(folder)
    module.setup("fit")
    torch.manual_seed(0)
    seen = [ids.tobytes() for batch in module.train_dataloader() for ids in batch.student.input_ids.numpy()]
    assert len(seen) == len(module.datasets["train"])
    assert seen != [ids.tobytes() for batch in module.val_dataloader() for ids in batch.student.input_ids.numpy()]


def test_texts_that_share_no_span_are_refused_before_training(tmp_path: Path) -> None:
    # The teacher has neither bos nor eos, and each text is one token: no token precedes it to predict it from.
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    backend = Tokenizer.from_str(splitting_tokenizer().backend_tokenizer.to_str())
    teacher = CanonicalVocabulary.from_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    module = data_module(tmp_path)
    module.connect(STUDENT, {"short": teacher})
    with pytest.raises(ValueError, match="no span in common with teacher 'short'"):
        module.setup("fit")


def test_data_module_without_tokenizers_asks_for_connect(folder: Path) -> None:
    with pytest.raises(UserError, match=r"call connect\(\) first"):
        DistillDataModule(TextSource(path=str(folder / "a.jsonl"))).setup("fit")


@pytest.mark.parametrize("option", ["batch_size", "sequence_length"])
def test_sizes_below_one_are_refused(folder: Path, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be >= 1, got 0"):
        DistillDataModule(TextSource(path=str(folder / "a.jsonl")), **{option: 0})


def test_test_stage_without_texts_names_the_setting(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"set data\.test\.path"):
        data_module(folder).setup("test")


def test_training_stream_is_endless_and_reshuffled_every_pass(folder: Path) -> None:
    module = data_module(folder, streaming=True, shuffle_buffer=100)
    module.setup("fit")
    num_batches = len(list(module.val_dataloader()))
    stream = iter(module.train_dataloader())
    passes = [[next(stream).student.input_ids.sum().item() for _ in range(num_batches)] for _ in range(2)]
    assert passes[0] != passes[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_that_are_all_empty_are_refused(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": ""}) + "\n")
    with pytest.raises(ValueError, match="must hold some text"):
        data_module(tmp_path, streaming=streaming).setup("fit")


def test_missing_text_in_a_later_row_is_named(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in ("a", None, "b")]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    with pytest.raises(ValueError, match=r"'text' holds NoneType in row 2 of '.*a.jsonl'"):
        data_module(tmp_path).setup("fit")


def test_loader_workers_make_the_plans(tmp_path: Path) -> None:
    student, teacher = (CanonicalVocabulary.from_tokenizer(make()) for make in (packing_tokenizer, splitting_tokenizer))
    loss = BytePrefixKL()
    loss.bind(student, teacher, None)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:3]))
    data = DistillDataModule(TextSource(path=str(path)), sequence_length=64, num_workers=1)
    data.connect(student, {"t": teacher}, {"t": pickle.loads(pickle.dumps(loss.planner))})
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    plan = batch.teachers["t"].plan
    assert isinstance(plan, PrefixPlan)
    assert plan.boundary.count("levels") > 10
    # The same plan as in this process, nested dataclasses included.
    again = loss.planner(batch.student, batch.teachers["t"])
    assert torch.equal(plan.boundary.level_teacher, cast(PrefixPlan, again).boundary.level_teacher)
