"""Models and tokenizers that cannot be loaded are errors that name the model, whatever the library raised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import packing_tokenizer, write_model

from xtoken_pl.checkpoints.fingerprints import config_fingerprint
from xtoken_pl.models import load_causal_lm
from xtoken_pl.specs import Student, load_vocabulary
from xtoken_pl.tokenization import load_tokenizer
from xtoken_pl.utilities.errors import UserError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(write_model(tmp_path / "model", packing_tokenizer()))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def replace_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no weights")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: change(folder / "config.json", num_attention_heads="two"),
        lambda folder: change(folder / "config.json", hidden_act="nothing"),
        lambda folder: change(folder / "config.json", model_type="nothing"),
        lambda folder: (folder / "config.json").write_text("{"),
        replace_weights,
    ],
    ids=["type of a value", "activation", "model type", "JSON", "weights"],
)
def test_a_model_whose_files_are_invalid_is_named(model: Path, spoil: Callable[[Path], object]) -> None:
    spoil(model)
    with pytest.raises(UserError, match=rf"the model of the student must be .*'{model}' could not be loaded.*Reason: "):
        load_causal_lm(Student(model=str(model)), role="student")


def test_running_out_of_memory_is_not_blamed_on_the_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("xtoken_pl.models.loading.AutoModelForCausalLM.from_pretrained", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        load_causal_lm(Student(model=str(model)), role="student")


@pytest.mark.parametrize("content", ['{"model": {"type": "BPE"}}', "[]", "{", "{}"])
def test_a_tokenizer_whose_file_is_invalid_is_named(model: Path, content: str) -> None:
    (model / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=rf"'{model}' could not be loaded.*Reason: "):
        load_tokenizer(str(model))


@pytest.mark.parametrize("content", ["{", "[1]", "7"])
def test_a_configuration_that_is_not_a_json_object_is_named(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"must be a JSON object, but '{model}/config\.json' is not"):
        config_fingerprint(Student(model=str(model)))


def test_a_chat_template_that_is_not_text_is_named(model: Path) -> None:
    (model / "chat.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template must be UTF-8, but '.*chat\.jinja' is not"):
        load_vocabulary(Student(model=str(model), chat_template=str(model / "chat.jinja")))
