"""``python -m xtoken_pl export``: the student of a checkpoint as a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from xtoken_pl.checkpoints import Run, describe_student, holds_adapter, stored_chat_template, stored_identity, verify
from xtoken_pl.checkpoints.export import Form, check_form, read_checkpoint, write_adapted, write_student
from xtoken_pl.cli.usage import run_function
from xtoken_pl.models.text_model import read_config
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
    """Write the student of a checkpoint, sharded or not, as a Hugging Face directory.

    Args:
        checkpoint: Checkpoint of a run: a file, or the directory of a distributed one.
        output: Directory to write.
        student: Source of the student's configuration and tokenizer, and of the weights below an adapter; that of the
            run by default.
        form: For a student with an adapter: 'merged' writes a plain model, 'adapter' a directory for PEFT.
        dtype: Dtype of the exported weights; 'auto' keeps that of the checkpoint.
        overwrite: Replace a directory that exists.
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
        if source.chat_template is None and (template := stored_chat_template(state)) is not None:
            vocabulary.tokenizer.chat_template = template
        weights = {
            name.removeprefix(_STUDENT): tensor
            for name, tensor in state["state_dict"].items()
            if name.startswith(_STUDENT)
        }
        check_form(form, source, has_adapter=has_adapter)
        common: dict[str, Any] = {"dtype": dtype, "overwrite": overwrite}
        if has_adapter:
            write_adapted(target, source, weights, vocabulary.tokenizer, form=form, **common)
        else:
            trusted: dict[str, Any] = {"trust_remote_code": source.trust_remote_code}
            config = read_config(source.model, revision=source.revision, **trusted)
            write_student(
                target, config, weights, vocabulary.tokenizer, _generation_config(source), **trusted, **common
            )
    reader = "peft.PeftModel" if has_adapter and form == "adapter" else "AutoModelForCausalLM"
    converted = "" if dtype == "auto" else f" in {dtype}"
    print(f"written to {output}{converted}, to be loaded with {reader}.from_pretrained")


def _generation_config(source: Student) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(source.model, revision=source.revision)
    except OSError:  # the student came without one
        return None


def _adapted(source: Student, trained: Mapping[str, Any], checkpoint: str) -> Student:
    """Returns ``source`` with the adapter and the quantization of the run."""
    if not trained:
        if source.adapter is None:
            raise UserError(
                f"{checkpoint!r} holds an adapter without its configuration; give the run's student with its adapter: "
                "--student.adapter.rank and the other options"
            )
        return source
    adapter = dict(trained["adapter"])
    quantization = adapter.pop("quantization")
    del adapter["base"]
    return replace(source, adapter=LoRA(**adapter), quantization=quantization)


def _source(trained: Mapping[str, Any], checkpoint: str) -> Student:
    if not trained:
        raise UserError(
            f"{checkpoint!r} does not say where its student came from; give the directory or hub id that the run "
            "started from: --student.model"
        )
    return Student(model=trained["model"], revision=trained["revision"])
