"""A student as a plain Hugging Face folder, and an adapter as one of PEFT's."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from xtoken_pl.models.adapters import merge_adapter, save_adapter
from xtoken_pl.specs import DType, Student
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path

_STUDENT = "student."

#: Of a student with an adapter: ``merged`` into the weights below it, a plain model; or the ``adapter`` alone.
Form = Literal["merged", "adapter"]


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
        UserError: If the folder exists and ``overwrite`` is False.
    """
    weights = _converted(weights, dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    if generation_config is not None:
        model.generation_config = generation_config
    with atomic_path(target, kind="folder", overwrite=overwrite) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def write_adapted(
    target: Path,
    source: Student,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerFast,
    *,
    form: Form = "merged",
    dtype: DType = "auto",
    overwrite: bool = False,
) -> None:
    """Writes a student that was trained by an adapter; whole or not at all.

    Args:
        target: The folder.
        source: The student; merged, its weights are loaded again.
        weights: Those of the adapter, whole.
        form: What to write.
        dtype: Of the stored weights; ``auto`` keeps that of the student, or of the adapter alone.
        overwrite: Replace a folder that exists.

    Raises:
        UserError: If the folder exists and ``overwrite`` is False.
        UserError: If the weights below the adapter cannot be loaded.
    """
    if form == "adapter":
        with atomic_path(target, kind="folder", overwrite=overwrite) as folder:
            save_adapter(folder, source, _converted(weights, dtype))
            tokenizer.save_pretrained(folder)
        return
    model = merge_adapter(source, weights)
    write_student(
        target,
        model.config,
        model.state_dict(),
        tokenizer,
        model.generation_config,
        dtype=dtype,
        overwrite=overwrite,
        trust_remote_code=source.trust_remote_code,
    )


def check_form(form: Form, *, has_adapter: bool) -> None:
    """Refuses to write an adapter where there is none.

    Raises:
        UserError: If ``form`` is ``adapter`` for a student whose weights were all trained.
    """
    if form == "adapter" and not has_adapter:
        raise UserError(
            "form='adapter' needs a student with an adapter, and all weights of this one are trained; leave form out"
        )


def _converted(weights: dict[str, Tensor], dtype: DType) -> dict[str, Tensor]:
    if dtype == "auto":
        return weights
    return {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}


def read_checkpoint(checkpoint: Path, stack: ExitStack) -> dict[str, Any]:
    """The content of a checkpoint, sharded or not; tensors are mapped, not read, and stay until the stack is closed."""
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True, "mmap": True}
    if not checkpoint.is_dir():
        return torch.load(checkpoint, **options)
    meta = torch.load(checkpoint / "meta.pt", map_location="cpu", weights_only=True)
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir=checkpoint.parent))
    whole = Path(folder) / "whole.pt"
    dcp_to_torch_save(checkpoint, whole)
    return {**meta, **torch.load(whole, **options)}
