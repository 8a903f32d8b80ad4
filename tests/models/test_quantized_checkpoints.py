"""Models whose checkpoints are quantized compute with the weights that the stored numbers mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from architectures import write_multimodal
from damaged_models import rewrite, without
from quantized_checkpoints import FORMATS, gpt_oss, in_bfloat16, llama, logits, quantized
from quantized_formats import MXFP4, Format, fp8
from safetensors.torch import load_file
from small_models import packing_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from xtoken_pl.checkpoints.export import write_student
from xtoken_pl.models import load_causal_lm, loading
from xtoken_pl.models.causal_lm import load_model
from xtoken_pl.models.text_model import read_config
from xtoken_pl.specs import Student, Teacher, load_vocabulary
from xtoken_pl.utilities.errors import UserError

Checkpoint = tuple[str, Path, Format | MXFP4]


@pytest.fixture(scope="module", params=FORMATS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A quantized checkpoint, one with the weights that it means, in float32, and the format."""
    make, form = FORMATS[request.param]
    if isinstance(form, Format) and form.package is not None:
        pytest.importorskip(form.package)
    folder = tmp_path_factory.mktemp("model")
    plain = Path(make(folder / "plain"))
    files = quantized(plain, folder / "quantized", form)
    rewrite(plain / "model.safetensors", lambda weights: form.meant(in_bfloat16(weights)))
    return files, plain, form


def test_a_teacher_has_the_logits_of_the_weights_that_its_files_mean(checkpoint: Checkpoint) -> None:
    files, plain, form = checkpoint
    source = Teacher(model=files)
    loaded = load_model(source, load_vocabulary(source), role="teacher")
    expected = logits(AutoModelForCausalLM.from_pretrained(plain))
    assert loaded.model.dtype == torch.float32
    tolerance = form.rounding * expected.abs().max().item()
    torch.testing.assert_close(logits(loaded.model), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_all_weights_have_the_dtype_that_was_asked_for(checkpoint: Checkpoint, dtype: Any) -> None:
    """As in a checkpoint that is not quantized; some architectures keep a few in float32."""
    files, plain, _ = checkpoint
    model = load_causal_lm(Teacher(model=files, dtype=dtype), role="teacher")
    expected = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    same = AutoModelForCausalLM.from_pretrained(plain, dtype=expected).state_dict()
    dtypes = {name: weight.dtype for name, weight in model.named_parameters() if weight.is_floating_point()}
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= dtypes.keys()
    assert dtypes == {name: same[name].dtype for name in dtypes}
    assert logits(model).dtype == expected


def test_a_student_is_trained_and_exported_as_a_model_that_is_not_quantized(tmp_path: Path) -> None:
    """All its weights are trainable, since they are dequantized."""
    plain = Path(llama(tmp_path / "plain"))
    source = Student(model=quantized(plain, tmp_path / "fp8", fp8(64, 64)))
    vocabulary = load_vocabulary(source)
    model = load_model(source, vocabulary, role="student").model
    model(input_ids=torch.arange(20)[None]).logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    write_student(tmp_path / "x", read_config(source.model), model.state_dict(), vocabulary.tokenizer)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "x", dtype=torch.float32)
    assert not hasattr(exported.config, "quantization_config")
    torch.testing.assert_close(logits(exported), logits(model), rtol=0, atol=0)


def test_a_random_student_is_not_quantized(tmp_path: Path) -> None:
    files = quantized(Path(llama(tmp_path / "plain")), tmp_path / "fp8", fp8(64, 64))
    model = load_causal_lm(Student(model=files, weights="random"), role="student")
    assert not hasattr(model.config, "quantization_config")


def test_the_text_model_of_a_quantized_multimodal_checkpoint_is_loaded(tmp_path: Path) -> None:
    tokenizer = packing_tokenizer()
    form = Format(fp8(16, 16).settings, fp8(16, 16).store, fp8(16, 16).read, layers=("mlp.down_proj.weight",))
    write_multimodal(tmp_path / "plain", "gemma3", tokenizer)
    tokenizer.save_pretrained(tmp_path / "plain")
    files = quantized(tmp_path / "plain", tmp_path / "fp8", form)
    rewrite(tmp_path / "plain/model.safetensors", lambda weights: form.meant(in_bfloat16(weights)))
    models = [load_causal_lm(Teacher(model=str(path)), role="teacher") for path in (files, tmp_path / "plain")]
    assert logits(models[1]).abs().max() > 0.1
    torch.testing.assert_close(logits(models[0]), logits(models[1]), rtol=0, atol=1e-5)


def test_missing_parts_of_fp4_experts_are_named(tmp_path: Path) -> None:
    files = Path(quantized(Path(gpt_oss(tmp_path / "plain")), tmp_path / "mxfp4", MXFP4()))
    rewrite(files / "model.safetensors", without("layers.1.mlp.experts.down_proj_scales"))
    with pytest.raises(UserError, match=r"must be complete, .*layers\.1\.mlp\.experts\.down_proj"):
        load_causal_lm(Teacher(model=str(files)), role="teacher")


def test_blocks_that_are_cut_at_the_edge_are_refused_since_they_are_misread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 rows in blocks of 80 have two scales; transformers would take them for blocks of 64."""
    form = fp8(80, 128)
    files = Path(quantized(Path(llama(tmp_path / "plain")), tmp_path / "fp8", form))
    with pytest.raises(UserError, match=r"no multiple of a block of 80 x 128"):
        load_causal_lm(Teacher(model=str(files)), role="teacher")
    monkeypatch.setattr(loading, "check_scales", lambda *_, **__: None)
    misread = load_causal_lm(Teacher(model=str(files)), role="teacher").state_dict()
    plain = form.meant(in_bfloat16(load_file(tmp_path / "plain/model.safetensors")))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(misread[name][:64], plain[name][:64])
    assert not torch.allclose(misread[name][64:80], plain[name][64:80], rtol=1e-3)


def test_the_log_says_what_became_of_the_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = quantized(Path(llama(tmp_path / "plain")), tmp_path / "fp8", fp8(64, 64))
    with caplog.at_level("INFO"):
        load_causal_lm(Teacher(model=files, dtype="bfloat16"), role="teacher 'x'")
    expected = r"teacher 'x': the fp8 weights of .* were dequantized to bfloat16 .*; the model takes 0\.00\d+ GB"
    assert any(re.match(expected, message) for message in caplog.messages)


def test_layers_that_a_multimodal_checkpoint_does_not_quantize_are_named_as_in_the_text_model(tmp_path: Path) -> None:
    """Otherwise a layer in full precision would be read as one in 4 bits."""
    whole = write_multimodal(tmp_path / "plain", "gemma3", packing_tokenizer())
    kept = ["model.language_model.layers.0.mlp", "model.vision_tower", "model.multi_modal_projector", "lm_head"]
    bits = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=kept)
    quantized_whole = type(whole).from_pretrained(tmp_path / "plain", quantization_config=bits, dtype=torch.float32)
    quantized_whole.save_pretrained(tmp_path / "bits")
    model = load_causal_lm(Teacher(model=str(tmp_path / "bits")), role="teacher")
    kinds = [type(layer.mlp.gate_proj).__name__ for layer in cast(Any, model.model).layers]
    assert kinds == ["Linear"] + ["Linear4bit"] * (len(kinds) - 1)
    assert len(kinds) > 1
    loading._keep_layout_of_quantized(quantized_whole)
    expected = logits(quantized_whole)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
