"""A student as a plain Hugging Face folder, and an adapter as one of PEFT's."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from xtoken_pl.checkpoints import check_whole, holds_adapter, stored_identity
from xtoken_pl.files import atomic_path, check_target
from xtoken_pl.lora import LoRA
from xtoken_pl.models import model_fingerprint
from xtoken_pl.models.adapters import merge_adapter, save_adapter
from xtoken_pl.teacher import DType, Student, load_vocabulary

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
        FileExistsError: If the folder exists and ``overwrite`` is False.
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
        FileExistsError: If the folder exists and ``overwrite`` is False.
        ValueError: If the weights below the adapter cannot be loaded.
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
        ValueError: If ``form`` is ``adapter`` for a student whose weights were all trained.
    """
    if form == "adapter" and not has_adapter:
        raise ValueError(
            "form='adapter' needs a student with an adapter, and all weights of this one are trained; leave form out"
        )


def export(
    checkpoint: str,
    output: str,
    *,
    student: Student | None = None,
    form: Form = "merged",
    dtype: DType = "bfloat16",
    overwrite: bool = False,
) -> None:
    """Write the student of a checkpoint, sharded or not, as a Hugging Face folder.

    Args:
        checkpoint: A checkpoint of a run: a file, or the folder of a distributed one.
        output: The folder to write.
        student: Where the student's configuration and tokenizer come from, and the weights below an adapter; by
            default where the run took them.
        form: Of a student with an adapter: 'merged' writes a plain model, 'adapter' a folder for PEFT.
        dtype: Of the stored weights; 'auto' leaves them as they are.
        overwrite: Replace a folder that exists.
    """
    target = Path(output)
    check_target(target, kind="folder", overwrite=overwrite)
    if not Path(checkpoint).exists():
        raise FileNotFoundError(f"there is no checkpoint at {checkpoint!r}; check the path")
    check_whole(checkpoint)
    with ExitStack() as stack:
        state = read_checkpoint(Path(checkpoint), stack)
        identity = stored_identity(state)
        trained = {} if identity is None else identity["student"]
        source = student or _source(trained, checkpoint)
        vocabulary = load_vocabulary(source)
        if trained and trained["tokenizer"] != vocabulary.fingerprint:
            raise ValueError(
                f"the student of {checkpoint!r} was trained with another tokenizer than that of {source.model!r} "
                f"({trained['tokenizer']} there, {vocabulary.fingerprint} here); give the student of the run"
            )
        weights = {
            name.removeprefix(_STUDENT): tensor
            for name, tensor in state["state_dict"].items()
            if name.startswith(_STUDENT)
        }
        has_adapter = holds_adapter(state["state_dict"])
        check_form(form, has_adapter=has_adapter)
        if has_adapter:
            source = _adapted(source, trained, checkpoint)
            write_adapted(target, source, weights, vocabulary.tokenizer, form=form, dtype=dtype, overwrite=overwrite)
            reader = "AutoModelForCausalLM.from_pretrained" if form == "merged" else "peft.PeftModel.from_pretrained"
            print(f"written to {output}, to be loaded with {reader}")
            return
        common = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
        try:
            generation_config = GenerationConfig.from_pretrained(source.model, revision=source.revision)
        except OSError:  # it came without one
            generation_config = None
        write_student(
            target,
            AutoConfig.from_pretrained(source.model, **common),
            weights,
            vocabulary.tokenizer,
            generation_config,
            dtype=dtype,
            overwrite=overwrite,
            trust_remote_code=source.trust_remote_code,
        )
    print(f"written to {output}, to be loaded with AutoModelForCausalLM.from_pretrained")


def _converted(weights: dict[str, Tensor], dtype: DType) -> dict[str, Tensor]:
    if dtype == "auto":
        return weights
    return {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}


def _adapted(source: Student, trained: Mapping[str, Any], checkpoint: str) -> Student:
    """``source`` with the adapter and the quantization of the run, on the same weights."""
    if not trained:
        if source.adapter is None:
            raise ValueError(
                f"{checkpoint!r} holds an adapter, and does not say of which kind; give the run's student with its "
                "adapter: --student.adapter.rank and the like"
            )
        return source
    adapter = dict(trained["adapter"])
    base, quantization = adapter.pop("base"), adapter.pop("quantization")
    if (found := model_fingerprint(source)) != base:
        raise ValueError(
            f"the adapter of {checkpoint!r} was trained on other weights than those of {source.model!r} ({base} there, "
            f"{found} here); give the student of the run: --student.model"
        )
    return replace(source, adapter=LoRA(**adapter), quantization=quantization)


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


def _source(trained: Mapping[str, Any], checkpoint: str) -> Student:
    if not trained:
        raise ValueError(
            f"{checkpoint!r} does not say where its student came from; name the folder or hub id that the run started "
            "from: --student.model"
        )
    return Student(model=trained["model"], revision=trained["revision"])
