"""Tiny random models of many architectures, as installed transformers has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

_PLAIN = (
    *(
        "llama",
        "mistral",
        "ministral",
        "ministral3",
        "qwen2",
        "qwen3",
        "gemma",
        "phi",
        "phi3",
        "olmo",
        "olmo2",
        "olmo3",
    ),
    *("smollm3", "glm", "glm4", "starcoder2", "stablelm", "gpt_neox", "arcee", "apertus", "cwm", "ernie4_5", "exaone4"),
    *(
        "helium",
        "nemotron",
        "seed_oss",
        "lfm2",
        "hunyuan_v1_dense",
        "opt",
        "bloom",
        "internlm3",
        "persimmon",
        "diffllama",
    ),
    *("iquestcoder", "jais2", "bitnet", "hrm_text"),
)
_EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace", "decoder_sparse_step"), 1),
    **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "shared_intermediate_size": 16},
}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_LATENT_HEADS = {**_LATENT, "num_key_value_heads": 4, "head_dim": 8}
_LATENT_EXPERTS = {**_EXPERTS, **_LATENT_HEADS}
_LINEAR = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "layer_types": ["linear_attention", "full_attention"],
}
_GEMMA4 = {
    **{"hidden_size_per_layer_input": 8, "final_logit_softcapping": 3.0},
    **{"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}

#: Name of the architecture -> what its configuration has besides the common sizes.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{name: {} for name in _PLAIN},
    "falcon": {"head_dim": None},  # has it as a property
    "gemma4_unified_text": {"hidden_size_per_layer_input": 8},
    **{name: {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128} for name in ("gpt2", "gpt_bigcode")},
    **{
        name: {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128}
        for name in ("gptj", "codegen")
    },
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
    # Heads with a factor or a soft cap
    "gemma2": {"final_logit_softcapping": 3.0},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "vaultgemma": {"final_logit_softcapping": 3.0},
    "gemma3n_text": {
        **{
            "final_logit_softcapping": 3.0,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "num_kv_shared_layers": 0,
        },
        **{"intermediate_size": [64, 64], "activation_sparsity_pattern": [0.0, 0.0]},
    },
    "gemma4_text": _GEMMA4,
    "beam": {**_EXPERTS, "final_logit_softcapping": 3.0},
    "granite_swa": {"logits_scaling": 8.0},
    "granitemoe_swa": {**_EXPERTS, "logits_scaling": 6.0},
    "cohere2_moe": {**_EXPERTS, "logit_scale": 0.0625},
    "minicpm3": {**_LATENT_HEADS, "dim_model_base": 16},
    "nanochat": {"final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
    "granitemoe": {**_EXPERTS, "logits_scaling": 6.0},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625},
    "hyperclovax": {"logits_scaling": 0.125},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.04},
    # Mixtures of experts
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "phimoe", "glm4_moe", "ernie4_5_moe"), _EXPERTS),
    **dict.fromkeys(("gpt_oss", "minimax_m2", "dots1", "hunyuan_v1_moe", "flex_olmo", "granitemoeshared"), _EXPERTS),
    "llama4_text": {**_EXPERTS, "intermediate_size_mlp": 64},
    **dict.fromkeys(("exaone_moe", "solar_open", "afmoe"), _EXPERTS),
    **dict.fromkeys(("laguna", "mellum", "mimo_v2_flash", "hy_v3"), _EXPERTS),
    "doge": {},
    "flint": {**_EXPERTS, "mlp_only_layers": [0]},
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32"), _LATENT_EXPERTS),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "axk1"), _LATENT_EXPERTS),
    # Other mixers than attention
    "qwen3_next": {**_EXPERTS, **_LINEAR},
    "qwen3_5_text": _LINEAR,
    "qwen3_5_moe_text": {**_EXPERTS, **_LINEAR},
    "granitemoehybrid": {**_EXPERTS, **_MAMBA, "layer_types": ["mamba", "attention"], "logits_scaling": 6.0},
    "kimi_linear": {**_EXPERTS, **_LATENT, "linear_head_dim": 8, "linear_num_heads": 4},
    "bailing_hybrid": {**_EXPERTS, **_LATENT, "layer_group_size": 2, "num_key_value_heads": 4},
    "minimax": _EXPERTS,
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "full_attention"]},
    "nemotron_h": {**_EXPERTS, **_MAMBA},
    "rwkv": {},
    "olmo_hybrid": _LINEAR,
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "falcon_mamba": {"state_size": 8},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "jamba": {
        **_EXPERTS,
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        "use_mamba_kernels": False,
    },
}
#: What they do to their logits behind the head.
LOGITS = {
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "vaultgemma", "nanochat"), "soft cap"),
    **dict.fromkeys(("recurrent_gemma", "beam"), "soft cap"),
    **dict.fromkeys(("granite", "granitemoe", "granitemoehybrid", "granite_swa", "granitemoe_swa"), "factor"),
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe", "hyperclovax", "minicpm3"), "factor"),
    "falcon_h1": "factor",
}
#: Mixtures of experts whose class in transformers has a load balancing loss.
BALANCED = (
    *("qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_5_moe_text", "mixtral", "minimax_m2", "olmoe", "flex_olmo"),
    *("phimoe", "ernie4_5_moe", "gpt_oss", "granitemoe", "granitemoeshared", "granitemoehybrid", "jamba"),
    *("laguna", "granitemoe_swa", "mellum", "flint"),
)
#: Those in which a document of a packed sequence reaches the next one: by a recurrence, or by a mask that transformers
#: does not cut where positions restart.
LEAKY = {
    *("falcon_h1", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "granitemoehybrid", "mamba", "mamba2", "jamba"),
    *("kimi_linear", "bailing_hybrid", "minimax", "olmo_hybrid", "bamba", "recurrent_gemma", "falcon_mamba"),
    *("falcon", "opt", "bloom", "afmoe", "gpt_oss", "xglm", "nemotron_h"),
    "rwkv",
}


def _sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    return {
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512},
        **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), len(tokenizer)),
        **{name: 0 if token_id is None else token_id for name, token_id in roles.items()},
    }


def write_architecture(
    folder: Path, name: str, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, scale: float = 8.0, **changes: Any
) -> str:
    """A random two-layer model with its tokenizer in ``folder``; returns the path.

    Args:
        folder: Where to write to.
        name: Architecture, one of :data:`ARCHITECTURES`.
        tokenizer: The tokenizer.
        seed: Of the weights.
        scale: Factor on the head, so that distributions are far from uniform.
        changes: Further settings of the configuration.
    """
    torch.manual_seed(seed)
    settings = {**_sizes(tokenizer), **ARCHITECTURES[name], **changes}
    config = AutoConfig.for_model(name, **{key: value for key, value in settings.items() if value is not None})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


_VISION = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28},
    **{"patch_size": 14, "depth": 1, "num_heads": 2, "out_hidden_size": 32, "deepstack_visual_indexes": []},
}
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_TWO_AXES = {"rope_parameters": {**_ROPE, "mrope_section": [1, 1], "partial_rotary_factor": 0.5}}
_THREE_AXES = {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}}
#: Multimodal architecture -> what its text model and its vision tower have besides the common sizes.
MULTIMODAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({}, {}),
    "gemma4": (_GEMMA4, {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8}),
    "paligemma": ({"model_type": "gemma"}, {"projection_dim": 32}),
    "llama4": (
        {**_EXPERTS, "intermediate_size_mlp": 64},
        {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    ),
    "llava": ({"model_type": "llama"}, {"model_type": "clip_vision_model"}),
    "llava_next": ({"model_type": "mistral"}, {"model_type": "clip_vision_model"}),
    "internvl": ({"model_type": "qwen2"}, {}),
    "idefics3": ({"model_type": "llama"}, {}),
    "lfm2_vl": ({"model_type": "lfm2"}, {}),
    "kimi_k25": (_LATENT_EXPERTS, {}),
    "mistral3": ({"model_type": "ministral3"}, {"model_type": "pixtral", "head_dim": 8}),
    "glm4v": (_TWO_AXES, {}),
    "glm4v_moe": (
        {**_EXPERTS, **_TWO_AXES},
        {},
    ),
    "qwen2_vl": (_THREE_AXES, {"embed_dim": 16, "hidden_size": 32}),
    "qwen2_5_vl": (_THREE_AXES, {}),
    "qwen3_vl": ({}, {}),
    "qwen3_vl_moe": (_EXPERTS, {}),
    "qwen3_5": (_LINEAR, {}),
    "qwen3_5_moe": ({**_EXPERTS, **_LINEAR}, {}),
    "smolvlm": ({"model_type": "llama"}, {}),
}


def write_multimodal(folder: Path, name: str, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0) -> PreTrainedModel:
    """A small random model that sees, with its tokenizer, in ``folder``; returns the whole model.

    Args:
        folder: Where to write to.
        name: Architecture, one of :data:`MULTIMODAL`.
        tokenizer: The tokenizer.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    text, vision = MULTIMODAL[name]
    config = AutoConfig.for_model(
        name, text_config={**_sizes(tokenizer), **text}, vision_config={**_VISION, **vision}, tie_word_embeddings=False
    )
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    # transformers writes Kimi's vision tower with `blocks` for `layers`, and the text model, which has none, too.
    weights = {
        name.replace("language_model.model.blocks", "language_model.model.layers"): weight
        for name, weight in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return model
