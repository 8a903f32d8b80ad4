"""A student as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

from xtoken_pl.files import atomic_path
from xtoken_pl.teacher import DType


def write_student(
    target: Path,
    config: PreTrainedConfig,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerFast,
    generation_config: GenerationConfig | None = None,
    *,
    dtype: DType = "auto",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Writes weights (safetensors), configuration, generation configuration and tokenizer; whole or not at all.

    Tied embeddings are stored once.

    Args:
        target: The folder.
        config: Of the model.
        weights: The model's ``state_dict``, whole.
        generation_config: As the student came with it; None lets transformers derive one.
        dtype: Of the stored weights; ``auto`` leaves them as they are.
        overwrite: Replace a folder that exists.
        trust_remote_code: Run code that came with the model.

    Raises:
        FileExistsError: If the folder exists and ``overwrite`` is False.
    """
    if dtype != "auto":
        weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    if generation_config is not None:
        model.generation_config = generation_config
    with atomic_path(target, kind="folder", overwrite=overwrite) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
