"""A GGUF file becomes a model directory with the weights that it means and the original's own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged_models import Weights, without
from gguf import GGMLQuantizationType
from gguf_files import write_gguf
from safetensors.torch import load_file, save_file
from small_models import packing_tokenizer, splitting_tokenizer, write_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from xtoken_pl.cli import main
from xtoken_pl.models import load_causal_lm
from xtoken_pl.specs import Student, Teacher, load_vocabulary
from xtoken_pl.tokenization import load_tokenizer
from xtoken_pl.utilities.errors import UserError

KINDS = {kind.name: kind for kind in (GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0)}


def llama(folder: Path) -> None:
    write_model(folder, packing_tokenizer(), hidden_size=64)


def qwen3(folder: Path) -> None:
    """Its head has more rows than its tokenizer has tokens, as published ones do."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config = Qwen3Config(**sizes, **heads, vocab_size=len(packing_tokenizer()) + 20, tie_word_embeddings=True)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    packing_tokenizer().save_pretrained(folder)


MAKERS = {"llama": llama, "qwen3": qwen3}


def gguf_of(original: Path, file: Path, architecture: str, kind: str, change: Any = dict) -> Weights:
    """Writes the GGUF file of a model, whose directory then has no weights."""
    weights = load_file(original / "model.safetensors")
    (original / "model.safetensors").unlink()
    config = AutoConfig.from_pretrained(original)
    return write_gguf(file, architecture, config, change(weights), packing_tokenizer(), KINDS[kind])


def convert(folder: Path, **options: str) -> Path:
    given = {"gguf": folder / "x.gguf", "original": folder / "original", "output": folder / "converted", **options}
    main(["convert", *(part for name, value in given.items() for part in (f"--{name}", str(value)))])
    return folder / "converted"


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=torch.arange(60).reshape(3, 20)).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", MAKERS)
def test_a_converted_model_has_the_logits_of_the_weights_that_the_file_means(
    tmp_path: Path, architecture: str, kind: str
) -> None:
    original = tmp_path / "original"
    MAKERS[architecture](original)
    meant = gguf_of(original, tmp_path / "x.gguf", architecture, kind)
    converted = convert(tmp_path)
    save_file(meant, original / "model.safetensors", metadata={"format": "pt"})
    expected = logits(AutoModelForCausalLM.from_pretrained(original))
    for source in (Teacher(model=str(converted)), Student(model=str(converted))):
        load_vocabulary(source)
        model = load_causal_lm(source, role="model")
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        assert not hasattr(model.config, "quantization_config")
    left, right = (load_tokenizer(str(folder)).backend_tokenizer.to_str() for folder in (converted, original))
    assert left == right


def test_settings_that_the_file_lacks_are_those_of_the_original(tmp_path: Path) -> None:
    """llama.cpp keeps Llama 3's scaled positions as numbers of their own, which transformers does not read."""
    llama(tmp_path / "original")
    path = tmp_path / "original/config.json"
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"rope_theta": 500000.0, "original_max_position_embeddings": 64}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": scaling}))
    gguf_of(tmp_path / "original", tmp_path / "x.gguf", "llama", "Q8_0")
    assert AutoConfig.from_pretrained(convert(tmp_path)).rope_parameters == scaling


def test_another_tokenizer_than_that_of_the_file_is_refused(tmp_path: Path) -> None:
    llama(tmp_path / "original")
    gguf_of(tmp_path / "original", tmp_path / "x.gguf", "llama", "F16")
    splitting_tokenizer(700).save_pretrained(tmp_path / "original")
    with pytest.raises(UserError, match="give the model that the file was made from"):
        convert(tmp_path)
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    ("architecture", "change", "expected"),
    [
        ("llama", without("layers.1.mlp.up_proj"), r"the weights of the model must be complete"),
        ("unheard-of", dict, r"architecture 'unheard-of'"),
    ],
)
def test_files_that_transformers_does_not_read_whole_are_refused(
    tmp_path: Path, architecture: str, change: Any, expected: str
) -> None:
    llama(tmp_path / "original")
    gguf_of(tmp_path / "original", tmp_path / "x.gguf", architecture, "F16", change)
    with pytest.raises(UserError, match=expected):
        convert(tmp_path)


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    llama(tmp_path / "original")
    for name, expected in (("nothing", "there is none at"), ("original/config.json", "must hold its tokens")):
        with pytest.raises(UserError, match=expected):
            convert(tmp_path, gguf=str(tmp_path / name))


def test_a_gguf_file_in_place_of_a_model_names_the_way_out(tmp_path: Path) -> None:
    llama(tmp_path / "original")
    (tmp_path / "folder").mkdir()
    gguf_of(tmp_path / "original", tmp_path / "folder/x.gguf", "llama", "F16")
    for model in ("folder/x.gguf", "folder"):
        with pytest.raises(UserError, match=r"that of a GGUF file is not: .*python -m xtoken_pl convert"):
            load_vocabulary(Teacher(model=str(tmp_path / model)))
