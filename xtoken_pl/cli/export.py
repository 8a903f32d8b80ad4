"""``python -m xtoken_pl export``: the student of a checkpoint as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from xtoken_pl.checkpoints import Run, describe_student, holds_adapter, stored_identity, verify
from xtoken_pl.checkpoints.export import Form, check_form, read_checkpoint, write_adapted, write_student
from xtoken_pl.cli.usage import run_function
from xtoken_pl.specs import DType, LoRA, Student, load_vocabulary
from xtoken_pl.utilities.errors import UserError
from xtoken_pl.utilities.files import check_target

_STUDENT = "student."


def run(arguments: list[str]) -> None:
    """Runs the verb."""
    run_function(export, arguments)


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
    verify(checkpoint, Run(), "export")
    with ExitStack() as stack:
        state = read_checkpoint(Path(checkpoint), stack)
        identity = stored_identity(state)
        trained = {} if identity is None else identity["student"]
        source = student or _source(trained, checkpoint)
        has_adapter = holds_adapter(state["state_dict"])
        if has_adapter:
            source = _adapted(source, trained, checkpoint)
        vocabulary = load_vocabulary(source)
        verify(state, Run(student=describe_student(source, vocabulary)), "export")
        weights = {
            name.removeprefix(_STUDENT): tensor
            for name, tensor in state["state_dict"].items()
            if name.startswith(_STUDENT)
        }
        check_form(form, has_adapter=has_adapter)
        if has_adapter:
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


def _adapted(source: Student, trained: Mapping[str, Any], checkpoint: str) -> Student:
    """``source`` with the adapter and the quantization of the run."""
    if not trained:
        if source.adapter is None:
            raise UserError(
                f"{checkpoint!r} holds an adapter, and does not say of which kind; give the run's student with its "
                "adapter: --student.adapter.rank and the like"
            )
        return source
    adapter = dict(trained["adapter"])
    quantization = adapter.pop("quantization")
    del adapter["base"]
    return replace(source, adapter=LoRA(**adapter), quantization=quantization)


def _source(trained: Mapping[str, Any], checkpoint: str) -> Student:
    if not trained:
        raise UserError(
            f"{checkpoint!r} does not say where its student came from; name the folder or hub id that the run started "
            "from: --student.model"
        )
    return Student(model=trained["model"], revision=trained["revision"])
