"""Invalid adapters are refused before time is spent on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_students import student_of
from architectures import write_multimodal
from small_models import packing_tokenizer

from xtoken_pl import LoRA, MultiTeacherDistillModule, Student
from xtoken_pl.callbacks import HFExport
from xtoken_pl.cli.export import export
from xtoken_pl.models.adapters import add_adapter, check_adapter
from xtoken_pl.models.loading import load_causal_lm
from xtoken_pl.models.placement import place_student
from xtoken_pl.tokenization import CanonicalVocabulary
from xtoken_pl.utilities.errors import UserError


def test_invalid_specifications_are_refused_with_a_fix() -> None:
    with pytest.raises(ValueError, match="rank of an adapter must be >= 1, got 0"):
        LoRA(rank=0)
    with pytest.raises(ValueError, match="alpha of an adapter must be >= 1, got 0"):
        LoRA(alpha=0)
    with pytest.raises(ValueError, match=r"dropout of an adapter must be in \[0, 1\), got 1"):
        LoRA(dropout=1.0)
    with pytest.raises(ValueError, match=r"must name layers, got \[\]; 'all-linear'"):
        LoRA(target_modules=[])
    with pytest.raises(ValueError, match="weights='random'; use pretrained weights, or leave the adapter out"):
        Student(model="x", weights="random", adapter=LoRA())
    with pytest.raises(ValueError, match=r"give it one \(adapter: \{rank: 16\}\), or leave quantization out"):
        Student(model="x", quantization="4bit")


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (["q_proj", "query"], "got 'query': there is no layer of that name"),
        ("model.*query", r"got 'model\.\*query': there is no layer of that name"),
        (["lm_head"], "'lm_head' is the head, which the losses apply separately"),
        (["embed_tokens"], "'model.embed_tokens' is of type Embedding"),
    ],
)
def test_targets_must_be_layers_below_the_head_and_are_checked_before_texts_are_read(
    workspace: Path, targets: Any, reason: str
) -> None:
    module = MultiTeacherDistillModule(student_of(workspace, target_modules=targets), {}, kd_weight=0.0)
    with pytest.raises(ValueError, match=rf"{reason}\. .* called down_proj, gate_proj, k_proj"):
        module.vocabularies()  # which the data module asks for first


@pytest.mark.parametrize(
    "targets", [["q_proj", "mlp.up_proj"], r"model\.layers\.\d+\.(self_attn\.q_proj|mlp\.up_proj)"]
)
def test_targets_are_the_ends_of_names_or_a_regular_expression(workspace: Path, targets: Any) -> None:
    source = student_of(workspace, target_modules=targets)
    model = load_causal_lm(source, role="student")
    assert source.adapter is not None
    add_adapter(model, source.adapter)
    adapted = sorted(name for name, part in model.named_modules() if hasattr(part, "lora_A"))
    assert adapted == [f"model.layers.{i}.{name}" for i in (0, 1) for name in ("mlp.up_proj", "self_attn.q_proj")]


@pytest.mark.parametrize(
    ("library", "place", "package"),
    [("peft", "frozen_adapters", r"'xtoken_pl\[adapters\]'"), ("bitsandbytes", "loading", "bitsandbytes")],
)
def test_a_library_that_is_missing_is_named(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, library: str, place: str, package: str
) -> None:
    monkeypatch.setattr(f"xtoken_pl.models.{place}.find_spec", lambda name: None)
    source = Student(model=str(workspace / "student"), adapter=LoRA(), quantization="4bit")
    with pytest.raises(UserError, match=rf"(?i)needs {library}.* not installed; install it \(pip install {package}"):
        check_adapter(source)


def test_a_quantized_student_is_not_sharded(workspace: Path) -> None:
    source = Student(model=str(workspace / "student"), adapter=LoRA(), quantization="4bit")
    vocabulary = CanonicalVocabulary.from_tokenizer(packing_tokenizer())
    with pytest.raises(ValueError, match="use strategy ddp, or leave quantization out"):
        place_student(source, vocabulary, mesh=object(), device="cpu")  # type: ignore[arg-type]


def test_export_of_a_missing_adapter_is_refused(workspace: Path) -> None:
    module = MultiTeacherDistillModule(Student(model=str(workspace / "student")), {}, kd_weight=0.0)
    with pytest.raises(ValueError, match="all weights of this one are trained; leave form out"):
        HFExport(form="adapter").check_module(module)


@pytest.mark.parametrize("name", ["gemma3", "llava"])
def test_the_text_model_of_a_multimodal_checkpoint_is_not_exported_as_an_adapter(tmp_path: Path, name: str) -> None:
    """PEFT loads the whole checkpoint, whose layers have other names, below an adapter."""
    write_multimodal(tmp_path / "whole", name, packing_tokenizer())
    source = student_of(tmp_path, "whole")
    module = MultiTeacherDistillModule(source, {}, kd_weight=0.0)
    HFExport(form="merged").check_module(module)
    with pytest.raises(UserError, match=rf"multimodal checkpoint \({name}\).*use form='merged'"):
        HFExport(form="adapter").check_module(module)

    model = load_causal_lm(source, role="student")
    assert source.adapter is not None
    add_adapter(model, source.adapter)
    weights = {f"student.{key}": value for key, value in model.state_dict().items() if ".lora_" in key}
    torch.save({"state_dict": weights}, tmp_path / "bare.ckpt")
    with pytest.raises(UserError, match=r"use form='merged'"):
        export(str(tmp_path / "bare.ckpt"), str(tmp_path / "export"), student=source, form="adapter")
    export(str(tmp_path / "bare.ckpt"), str(tmp_path / "export"), student=source)
    assert type(load_causal_lm(Student(model=str(tmp_path / "export")), role="student")) is type(model)
