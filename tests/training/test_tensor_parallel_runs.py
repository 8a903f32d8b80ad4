"""What tensor parallelism does not support is refused before texts are read, with the way out."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.strategies import ModelParallelStrategy
from small_models import packing_tokenizer, write_model
from transformers import AutoConfig

from xtoken_pl import LoRA, Rollouts, Student, Teacher, TokenKL
from xtoken_pl.training.split_runs import check_split_run
from xtoken_pl.utilities.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"), packing_tokenizer())


def trainer_of(data: int, tensor: int) -> pl.Trainer:
    strategy = ModelParallelStrategy(data, tensor)
    return pl.Trainer(
        accelerator="cpu", devices=data * tensor, strategy=strategy, logger=False, enable_checkpointing=False
    )


def check(student: Student, tensor: int = 2, rollouts: Rollouts | None = None, **teachers: Teacher) -> None:
    check_split_run(trainer_of(6 // tensor, tensor), student, teachers, rollouts)


def test_plain_models_and_new_adapters_are_accepted(model: str) -> None:
    check(Student(model=model, adapter=LoRA(rank=2)), teacher=Teacher(model=model, loss=TokenKL()))


def test_a_compiled_student_is_refused(model: str) -> None:
    with pytest.raises(UserError, match=r"compile, and the student has.*--trainer\.strategy fsdp2"):
        check(Student(model=model, compile=True))
    check(Student(model=model, compile=True), tensor=1)  # matrices are not split


def test_an_adapter_of_a_teacher_is_refused(model: str) -> None:
    with pytest.raises(UserError, match=r"an adapter, and the teacher 'adapted' has.*--trainer\.strategy fsdp2"):
        check(Student(model=model), adapted=Teacher(model=model, loss=TokenKL(), adapter="anywhere"))


def test_rollouts_are_refused(model: str) -> None:
    rollouts = Rollouts(max_new_tokens=8)
    with pytest.raises(UserError, match=r"leave model\.rollouts out, or use --trainer\.strategy fsdp2"):
        check(Student(model=model), rollouts=rollouts)


def test_heads_are_counted_before_weights_are_read(model: str) -> None:
    with pytest.raises(UserError, match=r"got 3 for the 2 heads of layers\.0\.self_attn\.\w+ of the student"):
        check(Student(model=model), tensor=3)


def test_a_teacher_is_checked_from_its_configuration_alone(model: str, tmp_path: Path) -> None:
    AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=4).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"that of the teacher 'other' \(GPT2LMHeadModel\) has no plan"):
        check(Student(model=model), other=Teacher(model=str(tmp_path), loss=TokenKL()))
