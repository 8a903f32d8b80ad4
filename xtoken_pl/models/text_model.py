"""The text model in a multimodal checkpoint; the parts that see or hear are left out."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, cast

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from xtoken_pl.utilities.errors import UserError

#: Names of a text model's weights in multimodal checkpoints -> its own names.
KEY_MAPPING = {
    r"^(model\.)?(language_model|text_model)\.(model\.)?(?!lm_head)": "model.",
    r"^(language_model|text_model)\.lm_head": "lm_head",
}
#: Text models without a class of their own -> the architecture that is the same for text. Positions of several axes
#: (M-RoPE) are equal along all of them where there is text alone.
_SAME_FOR_TEXT: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl_text": ("qwen2", {}),
    "qwen2_5_vl_text": ("qwen2", {}),
    "qwen3_vl_text": ("qwen3", {}),
    "qwen3_vl_moe_text": ("qwen3_moe", {"norm_topk_prob": True}),  # always, without a setting
    "glm4v_text": ("glm4", {}),
    "glm4v_moe_text": ("glm4_moe", {"use_qk_norm": False}),
}
#: Settings of quantized files that list layers which are not quantized.
_LISTS_OF_LAYERS = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore")
_OF_SEVERAL_AXES = ("mrope_section", "mrope_interleaved")


def read_config(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Reads the ``config.json`` of a causal language model; of a multimodal model, that of its text model.

    Raises:
        OSError, ValueError: If it cannot be read.
        UserError: If a multimodal model's text model has no class of its own.
    """
    config = AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
    return text_model_of(config)


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Whether a configuration holds that of a text model beside others."""
    return getattr(config, "text_config", None) is not None


def text_model_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """Returns the configuration of the text model that a multimodal configuration holds, any other one as it is.

    Raises:
        UserError: If the text model has no class of its own.
    """
    if not is_multimodal(config):
        return config
    text = cast(PreTrainedConfig, config.text_config)
    settings = text.to_dict()
    kind = settings.pop("model_type")
    if kind in _SAME_FOR_TEXT:
        rope = {name: value for name, value in settings["rope_parameters"].items() if name not in _OF_SEVERAL_AXES}
        rope["rope_type"] = "default" if rope.get("rope_type") == "mrope" else rope.get("rope_type", "default")
        rope.pop("type", None)
        same, implied = _SAME_FOR_TEXT[kind]
        text = AutoConfig.for_model(same, **{**settings, **implied, "rope_parameters": rope})
    elif type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"a multimodal model must have a text model that transformers loads alone, but {kind!r} of "
            f"{config.model_type!r} has no class of its own; give a checkpoint of the text model"
        )
    # Some settings are stored in the configuration of the whole model alone; audio models have none of these.
    text.tie_word_embeddings = getattr(config, "tie_word_embeddings", text.tie_word_embeddings)
    text.dtype = text.dtype or config.dtype
    if (quantization := getattr(config, "quantization_config", None)) is not None:
        text.quantization_config = _named_as_text_model(quantization)
    text.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(text)].__name__]
    return text


def _named_as_text_model(quantization: dict[str, Any]) -> dict[str, Any]:
    """The settings of quantized files with the text model's own names of layers."""
    return {
        key: [_own_name(name) for name in value] if key in _LISTS_OF_LAYERS and value else value
        for key, value in quantization.items()
    }


def _own_name(layer: str) -> str:
    for pattern, own in KEY_MAPPING.items():
        layer = re.sub(pattern, own, layer)
    return layer


def left_out(keys: Collection[str], own: Collection[str]) -> set[str]:
    """Names of a multimodal checkpoint's weights that belong to none of the text model's own parts.

    Args:
        keys: Names in the files that the text model does not have.
        own: Names of the text model's weights.
    """
    parts = {_part(name) for name in own}
    return {name for name in keys if _part(name) not in parts}


def _part(name: str) -> str:
    return name.removeprefix("model.").partition(".")[0]
