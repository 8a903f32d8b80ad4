"""Writes a student as a Hugging Face model directory, or its adapter as a PEFT one."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

from xtoken_pl.models.adapters import merge_adapter, save_adapter
from xtoken_pl.models.quantized_files import without_quantization
from xtoken_pl.models.text_model import is_multimodal
from xtoken_pl.specs import DType, Student
from xtoken_pl.tokenization import save_tokenizer
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import atomic_path
from xtoken_pl.utilities.words import reason_of

#: Form in which a student with an adapter is written: ``merged`` into a plain model, or the ``adapter`` alone.
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
    """Writes weights (safetensors), configuration, generation configuration and tokenizer, whole or not at all.

    Tied embeddings are stored once.

    Args:
        target: Directory to write.
        config: Configuration of the model; weights that were quantized in its files are not any more.
        weights: Complete ``state_dict`` of the model.
        tokenizer: Tokenizer of the model.
        generation_config: Generation configuration of the student; None lets transformers derive one.
        dtype: Data type of the stored weights; ``auto`` does not convert them.
        overwrite: Whether to overwrite an existing directory.
        trust_remote_code: Whether to run code that comes with the model.

    Raises:
        UserError: If the directory exists and ``overwrite`` is False, or the weights do not fit the configuration.
    """
    weights = _converted(weights, dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(without_quantization(config), trust_remote_code=trust_remote_code)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(
            "exported weights must be those of the student's config.json, and they are not; give the student of the "
            f"run that wrote them. Reason: {reason_of(error)}"
        ) from error
    model.tie_weights()
    if generation_config is not None:
        model.generation_config = generation_config
    with atomic_path(target, kind="folder", overwrite=overwrite) as folder:
        model.save_pretrained(folder)
        _save_tokenizer(tokenizer, folder, target)


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
    """Writes a student that was trained with an adapter, whole or not at all.

    Args:
        target: Directory to write.
        source: Specification of the student; ``merged`` loads its weights again.
        weights: Complete weights of the adapter.
        tokenizer: Tokenizer of the student.
        form: Whether to merge the adapter.
        dtype: Data type of the stored weights; ``auto`` does not convert them.
        overwrite: Whether to overwrite an existing directory.

    Raises:
        UserError: If the directory exists and ``overwrite`` is False.
        UserError: If the weights below the adapter cannot be loaded.
    """
    if form == "adapter":
        with atomic_path(target, kind="folder", overwrite=overwrite) as folder:
            save_adapter(folder, source, _converted(weights, dtype))
            _save_tokenizer(tokenizer, folder, target)
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


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, target: Path) -> None:
    """Saves the tokenizer in ``folder``, later ``target``; warns if ``AutoTokenizer`` loads another one from there."""
    if changed := save_tokenizer(tokenizer, folder):
        rank_zero_warn(
            f"AutoTokenizer gives other token ids than the tokenizer.json of {str(target)!r}, because transformers "
            f"{changed}. Load it with PreTrainedTokenizerFast.from_pretrained"
        )


def check_form(form: Form, source: Student, *, has_adapter: bool) -> None:
    """Checks that a student that is to be written as an adapter has one, on a model that can be loaded below it.

    The adapter of a text model in a multimodal checkpoint has the names of the text model's layers. Others load the
    checkpoint as a whole, whose layers have other names.

    Raises:
        UserError: If ``form`` is ``adapter`` for a student whose weights were all trained, or for one that is the text
            model of a multimodal checkpoint.
    """
    if form != "adapter":
        return
    if not has_adapter:
        raise UserError(
            "form='adapter' needs a student with an adapter, and all weights of this one are trained; leave form out"
        )
    trusted = {"trust_remote_code": source.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source.model, revision=source.revision, **trusted)
    except (OSError, ValueError):
        return  # loading the student will report the reason
    if is_multimodal(config):
        raise UserError(
            f"form='adapter' needs a student that PEFT can load below its adapter, but {source.model!r} is a "
            f"multimodal checkpoint ({config.model_type}), of which the text model alone is trained, and PEFT would "
            "load the whole; use form='merged', which writes the text model with the adapter merged into it"
        )


def _converted(weights: dict[str, Tensor], dtype: DType) -> dict[str, Tensor]:
    if dtype == "auto":
        return weights
    return {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}


def read_checkpoint(checkpoint: Path, stack: ExitStack) -> dict[str, Any]:
    """Reads a checkpoint, sharded or not; its tensors are memory-mapped and valid until the stack is closed."""
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True, "mmap": True}
    if not checkpoint.is_dir():
        return torch.load(checkpoint, **options)
    meta = torch.load(checkpoint / "meta.pt", map_location="cpu", weights_only=True)
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir=checkpoint.parent))
    whole = Path(folder) / "whole.pt"
    dcp_to_torch_save(checkpoint, whole)
    return {**meta, **torch.load(whole, **options)}
