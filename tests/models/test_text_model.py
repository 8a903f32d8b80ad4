"""Of a multimodal checkpoint the text model is loaded, trained and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from architectures import MULTIMODAL, write_multimodal
from safetensors.torch import load_file, save_file
from small_models import packing_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2AudioConfig, VoxtralConfig

from xtoken_pl import Student
from xtoken_pl.models.causal_lm import load_model
from xtoken_pl.models.text_model import text_model_of
from xtoken_pl.tokenization import CanonicalVocabulary

IDS = torch.arange(3, 15)[None]


@pytest.mark.parametrize("name", MULTIMODAL)
def test_the_text_model_alone_gives_the_logits_of_the_whole(tmp_path: Path, name: str) -> None:
    whole = write_multimodal(tmp_path / "whole", name, packing_tokenizer())
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    model = load_model(Student(model=str(tmp_path / "whole")), vocabulary, role="student").model
    with torch.no_grad():
        expected = whole(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-6)
    assert len(model.state_dict()) < len(whole.state_dict())

    model.save_pretrained(tmp_path / "text")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    assert type(exported) is type(model)
    assert json.loads((tmp_path / "text/config.json").read_text()).get("vision_config") is None
    with torch.no_grad():
        torch.testing.assert_close(exported(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-6)


def test_a_random_student_has_the_text_model_alone(tmp_path: Path) -> None:
    write_multimodal(tmp_path, "gemma3", packing_tokenizer())
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    model = load_model(Student(model=str(tmp_path), weights="random"), vocabulary, role="student").model
    assert type(model).__name__ == "Gemma3ForCausalLM"


def test_the_log_says_what_is_left_out_and_warns_of_other_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_multimodal(tmp_path, "llava", packing_tokenizer())
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    weights = load_file(tmp_path / "model.safetensors")
    weights["language_model.model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"weights that the student .* does not have .*q_proj.bias"):
        load_model(Student(model=str(tmp_path)), vocabulary, role="student")
    assert "LlamaForCausalLM alone is loaded" in caplog.text
    assert "(llava), without" in caplog.text


def test_a_missing_weight_of_the_text_model_is_an_error(tmp_path: Path) -> None:
    write_multimodal(tmp_path, "llava", packing_tokenizer())
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["language_model.model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights of the student must be complete.*model\.norm\.weight"):
        load_model(Student(model=str(tmp_path)), vocabulary, role="student")


def test_a_text_model_without_a_class_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    config = {"model_type": "hunyuan_vl", "text_config": {"model_type": "hunyuan_vl_text"}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    packing_tokenizer().save_pretrained(tmp_path)
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    with pytest.raises(ValueError, match=r"'hunyuan_vl_text' of 'hunyuan_vl' has no class of its own"):
        load_model(Student(model=str(tmp_path), weights="random"), vocabulary, role="student")


@pytest.mark.parametrize("config", [Qwen2AudioConfig, VoxtralConfig])
def test_a_model_that_hears_has_a_text_model_like_one_that_sees(config: type[PreTrainedConfig]) -> None:
    whole = config()
    text = text_model_of(whole)
    assert text.model_type == whole.text_config.model_type
    assert isinstance(text.tie_word_embeddings, bool)
