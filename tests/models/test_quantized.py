"""Quantized layers give the products and gradients of the weights that quantization left, on any CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import packing_tokenizer, write_model
from torch import Tensor
from transformers import PreTrainedModel

from xtoken_pl import LoRA, Student
from xtoken_pl.models import hidden_states
from xtoken_pl.models.placement import place_student
from xtoken_pl.tokenization import CanonicalVocabulary


def gradients(model: PreTrainedModel) -> dict[str, Tensor | None]:
    """Those of the adapter, of a weighted sum of all states."""
    ids = torch.arange(60).reshape(3, 20)
    states = hidden_states(model, ids, torch.ones_like(ids))
    (states * torch.linspace(-1, 1, states.numel()).reshape(states.shape)).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if ".lora_" in name}


# Some CPUs have products for blocks of 64 numbers.
@pytest.mark.parametrize("hidden_size", [32, 64])
def test_a_4bit_students_adapter_gets_the_gradient_of_the_dequantized_weights(tmp_path: Path, hidden_size: int) -> None:
    """Its first layer, too, which gets it through all quantized layers above."""
    folder = write_model(tmp_path / "student", packing_tokenizer(), seed=1, hidden_size=hidden_size)
    source = Student(model=folder, adapter=LoRA(rank=2), quantization="4bit")
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    model = place_student(source, vocabulary, None, "cpu").model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    model.eval()
    hidden_states(model, torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))  # as in validation
    quantized = gradients(model.train())
    model.zero_grad()
    dequantized = gradients(model.dequantize())
    assert quantized.keys() == dequantized.keys() != set()
    for name, gradient in dequantized.items():
        assert gradient is not None
        assert gradient.abs().max() > 1e-3
        # Both multiply in float32; sums of different order are about 1e-6 of the largest gradient apart.
        torch.testing.assert_close(quantized[name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())
