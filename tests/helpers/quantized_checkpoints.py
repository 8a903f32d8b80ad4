"""Tiny models with quantized checkpoints, as they are published."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from damaged_models import Weights, rewrite
from quantized_formats import (
    MXFP4,
    Format,
    awq,
    compressed_fp8,
    compressed_int4,
    fp8,
    fp8_per_tensor,
    gptq,
)
from small_models import packing_tokenizer, write_model
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

Make = Callable[[Path], str]
_SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_MOE = {**_SIZES, "num_key_value_heads": 2, "head_dim": 32, "num_experts_per_tok": 2, "max_position_embeddings": 512}


def llama(folder: Path) -> str:
    return write_model(folder, packing_tokenizer(), hidden_size=128)


def qwen3_moe(folder: Path) -> str:
    config = Qwen3MoeConfig(**_MOE, moe_intermediate_size=64, num_experts=4, vocab_size=len(packing_tokenizer()))
    return _written(Qwen3MoeForCausalLM, config, folder)


def gpt_oss(folder: Path) -> str:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = GptOssConfig(**_MOE, num_local_experts=4, vocab_size=len(packing_tokenizer()), rope_parameters=rope)
    return _written(GptOssForCausalLM, config, folder)


def _written(architecture: Any, config: Any, folder: Path) -> str:
    torch.manual_seed(0)
    architecture(config).save_pretrained(folder)
    packing_tokenizer().save_pretrained(folder)
    return str(folder)


FORMATS: dict[str, tuple[Make, Format | MXFP4]] = {
    "fp8": (llama, fp8(64, 64)),
    "fp8, blocks that are not square": (llama, fp8(32, 128)),
    "fp8, one scale": (llama, fp8_per_tensor()),
    "fp8, experts": (qwen3_moe, fp8(32, 32)),
    "mxfp4": (gpt_oss, MXFP4()),
    "compressed-tensors, fp8": (llama, compressed_fp8()),
    "compressed-tensors, int4": (llama, compressed_int4()),
    "gptq": (llama, gptq()),
    "awq": (llama, awq()),
}


def quantized(plain: Path, folder: Path, form: Format | MXFP4) -> str:
    """Writes ``plain`` with quantized layers, the other weights in bfloat16, as checkpoints are published."""
    shutil.copytree(plain, folder)
    rewrite(folder / "model.safetensors", lambda weights: form.stored(in_bfloat16(weights)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": form.settings, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def in_bfloat16(weights: Weights) -> Weights:
    return {name: tensor.bfloat16() for name, tensor in weights.items()}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Logits of three short rows of ids."""
    ids = torch.arange(60, device=model.device).reshape(3, 20)
    return model(input_ids=ids).logits
