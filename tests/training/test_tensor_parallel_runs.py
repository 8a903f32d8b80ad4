"""What tensor parallelism does not support is refused before texts are read, with the way out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
from lightning.pytorch.strategies import ModelParallelStrategy
from small_models import packing_tokenizer, write_model
from transformers import AutoConfig, AutoModelForCausalLM

from xtoken_pl import LoRA, Rollouts, Student, Teacher, TokenKL
from xtoken_pl.models.placement import place_student
from xtoken_pl.specs import load_vocabulary
from xtoken_pl.teachers.local import place_teachers
from xtoken_pl.training.tensor_parallel_runs import check_tensor_parallel_run
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
    check_tensor_parallel_run(trainer_of(6 // tensor, tensor), student, teachers, rollouts)


def test_plain_models_and_new_adapters_are_accepted(model: str) -> None:
    check(Student(model=model, adapter=LoRA(rank=2)), teacher=Teacher(model=model, loss=TokenKL()))


def test_a_compiled_student_is_refused(model: str) -> None:
    with pytest.raises(UserError, match=r"compile, and the student has.*--trainer\.strategy fsdp2"):
        check(Student(model=model, compile=True))
    check(Student(model=model, compile=True), tensor=1)  # matrices are not split


def test_a_quantized_student_is_refused(model: str) -> None:
    with pytest.raises(UserError, match=r"quantization, and the student has.*--trainer\.strategy fsdp2"):
        check(Student(model=model, adapter=LoRA(rank=2), quantization="4bit"))


def test_an_adapter_of_a_teacher_is_refused(model: str) -> None:
    with pytest.raises(UserError, match=r"an adapter, and the teacher 'adapted' has.*--trainer\.strategy fsdp2"):
        check(Student(model=model), adapted=Teacher(model=model, loss=TokenKL(), adapter="anywhere"))


def test_a_student_that_lightning_would_convert_is_refused(model: str) -> None:
    strategy = ModelParallelStrategy(3, 2)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=6,
        strategy=strategy,
        precision="bf16-true",
        logger=False,
        enable_checkpointing=False,
    )
    with pytest.raises(UserError, match=r"precision=bf16-true, bfloat16, and no adapter, got float32; set"):
        check_tensor_parallel_run(trainer, Student(model=model), {}, None)
    with pytest.raises(UserError, match=r"got bfloat16 and an adapter; set.*bf16-mixed"):
        check_tensor_parallel_run(trainer, Student(model=model, dtype="bfloat16", adapter=LoRA(rank=2)), {}, None)
    check_tensor_parallel_run(trainer, Student(model=model, dtype="bfloat16"), {}, None)


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


def test_files_that_are_dequantized_are_checked_as_what_they_become(tmp_path: Path) -> None:
    """The layers of the loaded student are not quantized any more, and would be split."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_experts": 4, "num_attention_heads": 4}
    AutoConfig.for_model("qwen3_moe", **sizes, num_key_value_heads=2).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fp8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": fp8}))
    with pytest.raises(UserError, match=r"that of the student \(Qwen3Moe\w+\) has the style '\w+' for layers\.0"):
        check(Student(model=str(tmp_path)))


def test_a_teacher_that_stays_quantized_is_not_split(model: str, tmp_path: Path) -> None:
    AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=4).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    settings = {**json.loads(file.read_text()), "quantization_config": {"quant_method": "gptq", "bits": 4}}
    file.write_text(json.dumps(settings))
    check(Student(model=model), other=Teacher(model=str(tmp_path), loss=TokenKL()))


def test_a_teacher_that_is_an_adapter_is_refused(model: str, tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": model}))
    with pytest.raises(UserError, match=r"of the teacher 'adapted' holds one \(adapter_config\.json\); merge it"):
        check(Student(model=model), adapted=Teacher(model=str(tmp_path), loss=TokenKL()))


def test_loaded_models_are_checked_before_they_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that cannot be judged by their configuration alone become known here."""
    tokenizer = packing_tokenizer()
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=4, vocab_size=len(tokenizer))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    mesh = cast(Any, SimpleNamespace(size=lambda: 2))
    for place in ("models.placement", "teachers.local"):
        monkeypatch.setattr(f"xtoken_pl.{place}.tensor_mesh", lambda _: mesh)
    student, teacher = Student(model=str(tmp_path)), Teacher(model=str(tmp_path), loss=TokenKL())
    vocabulary = load_vocabulary(student)
    with pytest.raises(UserError, match=r"that of the student \(GPT2LMHeadModel\) has no plan"):
        place_student(student, vocabulary, mesh, "cpu")
    with pytest.raises(UserError, match=r"that of the teacher 'other' \(GPT2LMHeadModel\) has no plan"):
        place_teachers({"other": teacher}, {"other": vocabulary}, mesh, "cpu")
