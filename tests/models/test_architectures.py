"""Every architecture learns, teaches, is exported, and is planned for."""

from __future__ import annotations

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from adapted_students import Losses, logits_of
from architectures import ARCHITECTURES, LEAKY, LOGITS, write_architecture
from small_models import TEXTS, packing_tokenizer, splitting_tokenizer
from transformers import AutoModelForCausalLM

from xtoken_pl import DistillDataModule, MultiTeacherDistillModule, Student, Teacher, TextSource
from xtoken_pl.callbacks import HFExport
from xtoken_pl.models.causal_lm import load_model
from xtoken_pl.plan.skeleton import Skeleton
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError

#: One of each kind; the others are slow in sum.
_FAST = {"gemma2", "granite", "llama4_text", "qwen3_moe", "qwen3_5_text", "mamba2", "falcon_h1", "gpt2"}
every_architecture = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _FAST else pytest.mark.slow) for name in ARCHITECTURES]
)


@every_architecture
def test_a_student_learns_from_a_teacher_of_its_architecture_and_is_exported(tmp_path: Path, name: str) -> None:
    student = write_architecture(tmp_path / "student", name, packing_tokenizer(), seed=1, scale=1.0)
    teacher = write_architecture(tmp_path / "teacher", name, splitting_tokenizer(), seed=2)
    texts = tmp_path / "texts.jsonl"
    # A window of each: every step sees all of them, so that losses can be compared.
    texts.write_text("\n".join(json.dumps({"text": text[:60]}) for text in TEXTS[:8]))
    torch.manual_seed(0)  # of the routers that are random while they learn
    module = MultiTeacherDistillModule(Student(model=student), {"t": Teacher(model=teacher)})
    module.optimizer_recipe = type(module.optimizer_recipe)(learning_rate=1e-2, warmup_fraction=0.0)
    data = DistillDataModule(TextSource(path=str(texts)), sequence_length=64, batch_size=8, num_workers=0)
    losses = Losses()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[losses, HFExport(dirpath=str(tmp_path / "export"))],
    )
    trainer.fit(module, data)
    assert losses.steps[2] < losses.steps[0]
    before = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).state_dict()
    trained = dict(module.student.named_parameters())
    assert [key for key, weight in trained.items() if weight.requires_grad and torch.equal(weight, before[key])] == []
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    torch.testing.assert_close(logits_of(exported), logits_of(module.student), rtol=0, atol=0)

    planned = Skeleton.from_source(Student(model=student), role="student")
    assert planned.num_parameters == sum(weight.numel() for weight in trained.values())


@every_architecture
def test_documents_of_a_packed_sequence_stay_apart_or_the_model_is_refused(tmp_path: Path, name: str) -> None:
    source = Student(model=write_architecture(tmp_path, name, packing_tokenizer(), seed=1))
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    if name not in LEAKY:
        load_model(source, vocabulary, role="student", separates=True)
        return
    with pytest.raises(UserError, match=r"a model must keep the documents of a sequence apart, but the states of the"):
        load_model(source, vocabulary, role="student", separates=True)


@every_architecture
def test_the_head_does_what_the_table_says(tmp_path: Path, name: str) -> None:
    source = Student(model=write_architecture(tmp_path, name, packing_tokenizer(), seed=1))
    transform = load_model(
        source, CanonicalVocabulary.from_tokenizer(packing_tokenizer()), role="student"
    ).head.transform
    found = None if transform is None else "factor" if transform.cap is None else "soft cap"
    assert found == LOGITS.get(name)
