"""The tokenizer of an exported student gives the ids that the student was trained on."""

import warnings
from pathlib import Path

import pytest
import torch
from small_models import TEXTS, packing_tokenizer
from tokenizer_folders import write_folder
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from xtoken_pl.checkpoints.export import write_student
from xtoken_pl.tokenization import CanonicalVocabulary, load_tokenizer

CHOICES = [(LlamaConfig, "GPT2Tokenizer"), (LlamaConfig, "LlamaTokenizer"), (Qwen2Config, None)]
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}


def export(
    folder: Path, kind: type[PreTrainedConfig], tokenizer_class: str | None, source: PreTrainedTokenizerFast
) -> PreTrainedTokenizerBase:
    """Exports a student whose configuration makes transformers choose a class that does not fit its tokenizer."""
    config = kind(vocab_size=len(source), num_key_value_heads=1, **TINY)
    loaded = load_tokenizer(str(write_folder(folder / "source", source, config.model_type, tokenizer_class)))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weights = {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}
    write_student(folder / "export", config, weights, loaded)
    return loaded


@pytest.mark.parametrize(("kind", "tokenizer_class"), CHOICES)
@pytest.mark.parametrize("name", ["packing", "llama2_style"])
@pytest.mark.filterwarnings("ignore:AutoTokenizer gives other token ids")
def test_an_exported_tokenizer_gives_the_ids_of_the_source(
    request: pytest.FixtureRequest, tmp_path: Path, kind: type[PreTrainedConfig], tokenizer_class: str | None, name: str
) -> None:
    source = packing_tokenizer() if name == "packing" else request.getfixturevalue(name)
    loaded = export(tmp_path, kind, tokenizer_class, source)
    expected = [
        Tokenizer.from_file(str(tmp_path / "source/tokenizer.json")).encode(text).ids for text in (*TEXTS, "  a  1984")
    ]
    again = load_tokenizer(str(tmp_path / "export"))
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path / "export")
    for tokenizer in (loaded, again, plain):
        assert tokenizer([*TEXTS, "  a  1984"])["input_ids"] == expected
    fingerprints = {CanonicalVocabulary.from_tokenizer(tokenizer).fingerprint for tokenizer in (loaded, again)}
    assert len(fingerprints) == 1


def test_auto_tokenizer_loads_an_exported_tokenizer_where_the_model_type_lets_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="AutoTokenizer")
        loaded = export(tmp_path, LlamaConfig, "GPT2Tokenizer", packing_tokenizer())
    assert AutoTokenizer.from_pretrained(tmp_path / "export")(TEXTS)["input_ids"] == loaded(TEXTS)["input_ids"]


def test_a_warning_says_where_auto_tokenizer_loads_another_one(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"/export'.*Qwen2Tokenizer.*normalizer.*PreTrainedTokenizerFast"):
        loaded = export(tmp_path, Qwen2Config, None, packing_tokenizer())
    assert AutoTokenizer.from_pretrained(tmp_path / "export")(TEXTS)["input_ids"] != loaded(TEXTS)["input_ids"]
