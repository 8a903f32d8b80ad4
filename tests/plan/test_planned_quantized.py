"""Weights of quantized checkpoints take as many bytes as planned, or are refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from architectures import write_architecture
from planned import size_of
from small_models import packing_tokenizer

from xtoken_pl import LoRA, Student, Teacher, TokenKL
from xtoken_pl.models.loading import load_causal_lm
from xtoken_pl.plan.advice import single_changes
from xtoken_pl.plan.moments import MemoryPlan
from xtoken_pl.plan.run import Run
from xtoken_pl.plan.skeleton import Skeleton
from xtoken_pl.utilities.errors import UserError


def plan_of(student: Student, teachers: dict[str, Teacher]) -> MemoryPlan:
    return MemoryPlan.from_run(Run(student, teachers, 2, 64, logits_memory=1_000_000))


def with_quantization(folder: Path, name: str, **settings: Any) -> Teacher:
    """A directory with the configuration of a quantized checkpoint, and no weights."""
    source = Path(write_architecture(folder / name, name, packing_tokenizer()))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return Teacher(model=str(source), loss=TokenKL(), dtype="bfloat16")


def stored_bytes(teacher: Teacher) -> int:
    stored = Skeleton.from_source(teacher, role="teacher 't'").stored
    assert stored is not None
    assert stored.num_bytes is not None
    return stored.num_bytes


def plain_bytes(teacher: Teacher) -> int:
    return Skeleton.from_source(teacher, role="teacher 't'").weight_bytes


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the package `kernels`."""
    monkeypatch.setattr("xtoken_pl.models.quantized_files.is_kernels_available", lambda: True)


_LLAMA_LAYERS = [(32, 32), (16, 32), (16, 32), (32, 32), (64, 32), (64, 32), (32, 64)]  # outputs, inputs


@pytest.mark.usefixtures("kernels")
def test_fp8_weights_have_a_byte_each_and_a_scale_for_a_block(tmp_path: Path) -> None:
    """Blocks of 24 x 24: the last one of a row or column is smaller. Per layer of the model, twice."""
    teacher = with_quantization(tmp_path, "llama", quant_method="fp8", weight_block_size=[24, 24])
    saved = sum(rows * columns for rows, columns in _LLAMA_LAYERS)  # two bytes before, one now
    scales = sum(4 * -(-rows // 24) * -(-columns // 24) for rows, columns in _LLAMA_LAYERS)
    assert stored_bytes(teacher) == plain_bytes(teacher) + 2 * (scales - saved)


@pytest.mark.usefixtures("kernels")
def test_fp8_and_mxfp4_experts_are_counted_as_they_are_stored(tmp_path: Path) -> None:
    """Two layers of four experts, 16 x 32 (twice, fused) and 32 x 16, or 64 for 16; MXFP4 has 4.25 bits a weight."""
    teacher = with_quantization(
        tmp_path,
        "qwen3_moe",
        quant_method="fp8",
        weight_block_size=[16, 16],
        modules_to_not_convert=["model.layers.*.self_attn", "lm_head"],
    )
    weights = 4 * 3 * 32 * 16
    assert stored_bytes(teacher) == plain_bytes(teacher) + 2 * (4 * weights // 256 - weights)
    oss = with_quantization(
        tmp_path, "gpt_oss", quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn"]
    )
    weights, biases = 4 * 3 * 32 * 64, 4 * (2 * 64 + 32)
    saved = 2 * weights - (weights // 2 + weights // 32) - 2 * biases  # biases in float32
    assert stored_bytes(oss) == plain_bytes(oss) - 2 * saved


def test_weights_that_no_kernel_can_use_are_planned_in_the_dtype_they_are_dequantized_to(tmp_path: Path) -> None:
    teacher = with_quantization(tmp_path, "llama", quant_method="fp8", weight_block_size=[32, 32])
    plan = plan_of(replace(Student(model=teacher.model), dtype="bfloat16"), {"t": teacher})
    assert plan.peak.terms["teacher t: weights"] == plain_bytes(teacher)
    assert plan.peak.terms["student: weights"] == plain_bytes(teacher)


@pytest.mark.usefixtures("kernels")
def test_offloaded_teachers_and_students_dequantize_what_a_gpu_could_use(tmp_path: Path) -> None:
    teacher = with_quantization(tmp_path, "llama", quant_method="fp8", weight_block_size=[32, 32])
    for source in (replace(teacher, cpu_offload=True), Student(model=teacher.model, dtype="bfloat16")):
        stored = Skeleton.from_source(source, role="model").stored
        assert stored is not None
        assert not stored.is_kept


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_packed_weights_have_four_bits_and_a_scale_and_a_zero_for_a_group(tmp_path: Path, method: str) -> None:
    teacher = with_quantization(tmp_path, "llama", quant_method=method, bits=4, group_size=16)
    expected = plain_bytes(teacher)
    for rows, columns in _LLAMA_LAYERS * 2:
        expected += rows * columns // 2 + columns // 16 * rows * 5 // 2 - 2 * rows * columns
        expected += 4 * columns if method == "gptq" else 0
    assert stored_bytes(teacher) == expected
    terms = plan_of(
        Student(model=write_architecture(tmp_path / "s", "llama", packing_tokenizer())), {"t": teacher}
    ).peak.terms
    assert terms["teacher t: weights"] == expected


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_bitsandbytes_weights_take_what_they_do_when_they_are_loaded(tmp_path: Path, name: str, bits: Any) -> None:
    """By option and from quantized files, within 2%: layers of 128 columns, so that blocks are full."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "n_embd": 128}
    folder = write_architecture(tmp_path / "plain", name, packing_tokenizer(), **sizes)
    teacher = Teacher(model=folder, loss=TokenKL(), dtype="bfloat16", quantization=bits)
    model = load_causal_lm(teacher, role="teacher 't'")
    measured = size_of(model)
    for layer in model.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        scales = getattr(getattr(layer, "weight", None), "SCB", None)
        measured += 0 if state is None else state.absmax.nbytes
        measured += 0 if scales is None else scales.nbytes
    student = Student(model=folder)
    assert plan_of(student, {"t": teacher}).peak.terms["teacher t: weights"] == pytest.approx(measured, rel=0.02)
    model.save_pretrained(tmp_path / "quantized")
    packing_tokenizer().save_pretrained(tmp_path / "quantized")
    files = replace(teacher, model=str(tmp_path / "quantized"), quantization=None)
    plan = plan_of(student, {"t": files})
    assert plan.peak.terms["teacher t: weights"] == pytest.approx(measured, rel=0.02)
    changes = [change.text for change in single_changes(plan)]
    assert not any("t.quantization" in text or "t.cpu_offload" in text for text in changes)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_layers_quantized_by_option_are_those_of_quantized_files(tmp_path: Path, bits: Any) -> None:
    """Scales that are quantized, too, are a choice of files alone: a byte for 64 weights, and 4 for 256 of them."""
    files = with_quantization(tmp_path / "files", "gpt2", quant_method="bitsandbytes", **{f"load_in_{bits}": True})
    plain = write_architecture(tmp_path / "plain", "gpt2", packing_tokenizer())
    by_option = Skeleton.from_source(replace(files, model=plain, quantization=bits), role="teacher 't'").stored
    assert by_option == Skeleton.from_source(files, role="teacher 't'").stored
    twice = {"bnb_4bit_use_double_quant": True, f"load_in_{bits}": True}
    double = with_quantization(tmp_path / "double", "gpt2", quant_method="bitsandbytes", **twice)
    weights = 2 * 32 * (3 * 32 + 32 + 4 * 32 + 4 * 32)  # two layers
    saved = weights / 64 * (4 - 1 - 4 / 256) if bits == "4bit" else 0
    assert stored_bytes(files) - stored_bytes(double) == pytest.approx(saved, abs=1)


@pytest.mark.usefixtures("kernels")
def test_mxfp8_weights_that_stay_quantized_are_refused(tmp_path: Path) -> None:
    teacher = with_quantization(tmp_path, "llama", quant_method="mxfp8")
    with pytest.raises(UserError, match="LlamaForCausalLM take in the format 'mxfp8'"):
        Skeleton.from_source(teacher, role="teacher 't'")
    assert plain_bytes(replace(teacher, cpu_offload=True))  # dequantized


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("llama", {"quant_method": "hqq"}, "LlamaForCausalLM take in the format 'hqq'"),
        (
            "qwen3_moe",
            {"quant_method": "gptq", "bits": 4},
            "fused experts of Qwen3MoeForCausalLM take in the format 'gptq'",
        ),
    ],
)
def test_format_that_the_plan_cannot_count_is_refused_by_name(
    tmp_path: Path, name: str, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        Skeleton.from_source(with_quantization(tmp_path, name, **settings), role="teacher 't'")


def test_student_whose_files_stay_quantized_is_refused_unless_it_has_an_adapter_that_can_learn(tmp_path: Path) -> None:
    gptq = with_quantization(tmp_path / "gptq", "llama", quant_method="gptq", bits=4)
    four = with_quantization(tmp_path / "four", "llama", quant_method="bitsandbytes", load_in_4bit=True)
    Skeleton.from_source(Student(model=four.model, adapter=LoRA(rank=4)), role="student")
    for source in (Student(model=gptq.model, adapter=LoRA(rank=4)), Student(model=four.model)):
        with pytest.raises(UserError, match=r"pass a gradient|quantized student needs an adapter"):
            Skeleton.from_source(source, role="student")


def test_random_students_ignore_how_the_files_are_quantized(tmp_path: Path) -> None:
    source = with_quantization(tmp_path, "llama", quant_method="gptq", bits=4)
    assert Skeleton.from_source(Student(model=source.model, weights="random"), role="student").stored is None
