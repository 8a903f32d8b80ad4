"""GGUF files of tiny models, written as llama.cpp's converter writes them, and their numbers read by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from damaged_models import Weights
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    file: Path,
    architecture: str,
    config: PreTrainedConfig,
    weights: Weights,
    tokenizer: PreTrainedTokenizerBase,
    kind: GGMLQuantizationType,
) -> Weights:
    """Writes matrices as ``kind`` and vectors in float32; returns the weights that the file means, in float32."""
    writer = GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("unheard-of")
    known: dict[int, Any] = {index: token for token, index in tokenizer.get_vocab().items()}
    writer.add_token_list([known.get(index, f"[PAD{index}]") for index in range(config.vocab_size)])
    meant = {}
    for name, weight in weights.items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        num_heads = heads.get(name.split(".")[-2]) if architecture == "llama" else None
        stored = weight if num_heads is None else _interleaved(weight, num_heads)
        own = kind if weight.dim() == 2 else GGMLQuantizationType.F32
        data = quantize(stored.numpy().astype(np.float32), own)
        writer.add_tensor(_gguf_name(name), data, raw_dtype=own)
        read = _read(data, own, tuple(stored.shape))
        meant[name] = read if num_heads is None else _halved(read, num_heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def _gguf_name(name: str) -> str:
    stem, _, end = name.rpartition(".")
    if stem.startswith("model.layers."):
        number, _, part = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{_NAMES[part]}.{end}"
    return f"{_NAMES[stem]}.{end}"


def _interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """llama.cpp rotates neighbouring rows of a head of Llama, transformers those of its two halves."""
    return weight.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def _halved(weight: Tensor, num_heads: int) -> Tensor:
    return weight.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def _read(data: np.ndarray, kind: GGMLQuantizationType, shape: tuple[int, ...]) -> Tensor:
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return torch.from_numpy(data.astype(np.float32)).reshape(shape)
    sizes = {GGMLQuantizationType.Q8_0: 34, GGMLQuantizationType.Q4_0: 18}
    numbers: list[float] = []
    for block in data.reshape(-1, sizes[kind]):
        scale, rest = float(block[:2].view(np.float16)[0]), block[2:]
        if kind == GGMLQuantizationType.Q8_0:
            numbers += [scale * int(number) for number in rest.view(np.int8)]
        else:  # the first half of a block is in the lower bits
            numbers += [scale * (int(byte & 15) - 8) for byte in rest]
            numbers += [scale * (int(byte >> 4) - 8) for byte in rest]
    return torch.tensor(numbers).reshape(shape)
