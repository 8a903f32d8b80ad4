"""A student trains the weights that a loss on text has a gradient for, and no others, for which DDP would wait."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from architectures import write_architecture
from small_models import packing_tokenizer
from transformers import PreTrainedModel

from xtoken_pl.models.placement import place_student
from xtoken_pl.specs import LoRA, Student
from xtoken_pl.tokenization import CanonicalVocabulary


def placed(folder: Path, name: str, adapter: LoRA | None = None) -> PreTrainedModel:
    path = write_architecture(folder, name, packing_tokenizer())
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    return place_student(Student(model=path, adapter=adapter), vocabulary, None, "cpu").model


def frozen(model: PreTrainedModel) -> set[str]:
    return {name.split(".", 3)[-1] for name, weight in model.named_parameters() if not weight.requires_grad}


@pytest.mark.parametrize(
    ("name", "part"), [("afmoe", "expert_bias"), ("deepseek_v32", "indexer"), ("glm_moe_dsa", "indexer")]
)
def test_weights_that_only_choose_are_frozen_and_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, part: str
) -> None:
    names = frozen(placed(tmp_path, name))
    assert names
    assert all(part in key.split(".") for key in names)
    assert re.search(rf"a loss on text does not reach stay as they are: \S*\.{part}", caplog.text)


@pytest.mark.parametrize("name", ["llama", "gemma4_text", "qwen3_moe", "granitemoehybrid", "mamba2", "gpt2"])
def test_all_weights_of_other_models_are_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    assert frozen(placed(tmp_path, name)) == set()
    assert "does not reach" not in caplog.text


def test_adapters_of_layers_that_only_choose_are_frozen_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = placed(tmp_path, "deepseek_v32", LoRA(rank=2))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(".lora_" in name and "indexer" not in name for name in trained)
    ids = torch.arange(20)[None]
    model(input_ids=ids).logits.square().mean().backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
