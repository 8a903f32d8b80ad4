"""A student as a plain Hugging Face folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

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

from xtoken_pl.checkpoints import check_whole, stored_identity
from xtoken_pl.files import atomic_path, check_target
from xtoken_pl.teacher import DType, Student, load_vocabulary

_STUDENT = "student."


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


def export(
    checkpoint: str,
    output: str,
    *,
    student: Student | None = None,
    dtype: DType = "bfloat16",
    overwrite: bool = False,
) -> None:
    """Write the student of a checkpoint, sharded or not, as a Hugging Face folder.

    Args:
        checkpoint: A checkpoint of a run: a file, or the folder of a distributed one.
        output: The folder to write.
        student: Where the student's configuration and tokenizer come from; by default where the run took them.
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
